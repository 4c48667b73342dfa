//! The gateway: one `wss://` URL, and behind it a browser that was already running.
//!
//! A connection is [accepted](accept) on one of two doors; its request carries a credential, which is
//! [authenticated](authenticate); the price of a session is [held](hold) on the ledger; a warm browser is
//! [claimed](claim) from the pool; the request is [upgraded](upgrade) by an answer that is made here; bytes are
//! [spliced](splice) between the two sockets while started minutes are [metered](meter); and every way out passes
//! through [`settle`]. [`session`] calls these in that order.

// A connection's task holds everything that may follow; whether it may cross threads is asked through all of it.
#![recursion_limit = "256"]

pub mod config;
pub mod cli;

pub mod serve;
pub mod accept;
pub mod head;
pub mod tls;
pub mod session;
pub mod route;
pub mod join;
pub mod token;
pub mod host;
pub mod query;
pub mod authenticate;
pub mod places;
mod pacing;
pub mod crowd;
pub mod hold;
pub mod claim;
pub mod upgrade;
pub mod spares;
pub mod splice;
pub mod frame;
mod busy_poll;
pub mod limits;
pub mod suspension;
pub mod keeping;
pub mod meter;
pub mod settle;
pub mod settling;
mod turns;
pub mod outage;
pub mod owed;
pub mod unsecured;
pub mod sessions;
pub mod refusal;
pub mod api;
pub mod notices;
pub mod webhook;
pub mod clock;
pub mod drain;
pub mod takeover;
pub mod admin;
pub mod metrics;
