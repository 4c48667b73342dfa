//! Sessions over REST: made, ended, looked at.

mod create;
mod end;
mod list;
mod show;
mod view;

pub(super) use create::{Create, tell_limits};
pub(super) use end::End;
pub(super) use list::List;
pub(super) use show::Show;
pub(super) use view::View;
