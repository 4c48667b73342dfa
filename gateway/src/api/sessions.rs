//! Sessions over REST: what runs and what ran.

mod list;
mod show;
mod view;

pub(super) use list::List;
pub(super) use show::Show;
pub(super) use view::View;
