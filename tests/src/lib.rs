//! What the promises in `tests/promises` are written with: a gateway of one's own, its customers, and clients that do
//! what real ones do, and what they should not.
//!
//! Each [`Gateway`] is the real program in a directory of its own, so tests share nothing and may run at once. Whatever
//! it started ends with it. Its log is printed when it is dropped; the test runner shows that only of a test that
//! failed.

mod cdp;
mod customer;
mod domain;
mod gateway;
mod holdings;
mod http;
mod process;
mod receiver;
mod redis;
mod secure;
mod snippet;
mod stand_in;
mod wait;
mod watched;
mod way;

pub use cdp::{Cdp, Ending};
pub use customer::{Account, Customer, Key, Session, State};
pub use domain::Domain;
pub use gateway::{Builder, Door, Gateway, target_of};
pub use holdings::Holdings;
pub use http::{Refusal, Request, Response};
pub use process::{Pid, Running};
pub use receiver::{Received, Receiver};
pub use redis::Redis;
pub use secure::SecureRedis;
pub use snippet::{Interpreter, Snippet, Surroundings};
pub use stand_in::StandIn;
pub use wait::eventually;
pub use watched::WatchedRedis;
pub use way::Way;
