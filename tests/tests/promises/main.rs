//! What UFBrowsers promises its customers, one module each, tried from outside: the real program, real Chromium, real
//! client libraries.

mod ahead;
mod alerts;
mod away;
mod backup;
mod build;
mod clients;
mod crash;
mod discovery;
mod crowd;
mod doors;
mod drain;
mod elsewhere;
mod endings;
mod failover;
mod flat;
mod gateways;
mod keeping;
mod hostile;
mod limits;
mod locked;
mod lost;
mod moving;
mod overdraft;
mod queue;
mod quickstart;
mod rest;
mod slow_reader;
mod spares;
mod takeover;
mod snippets;
mod sockets;
mod suspension;
mod tokens;
mod unusual;
mod webhooks;
