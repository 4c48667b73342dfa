//! Claims that found no warm browser: one line for each owner, served in turn.
//!
//! The owner whose turn it is gets one browser and goes to the end of the turns. So what an owner waits for depends on how
//! many owners wait beside it, not on how many claims they have. The pool's reserve has a turn of its own, like an owner.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::lease::Lease;
use crate::{Share, Unavailable};

#[cfg(test)]
mod tests;

/// Claims that wait, in all. Each holds a client's connection and its money; it takes a large machine to serve this many
/// before their deadline.
pub(crate) const WAITING: usize = 4_096;
/// Claims of one owner that wait: twice the largest default plan's sessions at a time, so that the plan, not the queue,
/// is what its customers meet.
pub(crate) const WAITING_EACH: usize = 1_024;

/// Who claims. The pool knows no accounts; it only has to know whether two claims are of the same one.
pub(crate) type Owner = Arc<str>;

/// One that waits.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) owner: Owner,
    pub(crate) share: Share,
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<Result<Lease, Unavailable>>,
}

impl Claim {
    /// The client has left.
    fn is_void(&self) -> bool {
        self.reply.is_closed()
    }
}

/// Whose turn it is.
#[derive(Debug)]
enum Turn {
    Owner(Owner),
    Reserve,
}

/// Who gets the next browser.
#[derive(Debug)]
pub(crate) enum Next {
    Claim(Claim),
    /// The warm browsers that are kept for owners who have none.
    Reserve,
    /// Nobody waits.
    Nobody,
}

#[derive(Debug)]
pub(crate) struct Queue {
    /// None of them is empty.
    lines: HashMap<Owner, VecDeque<Claim>>,
    /// Each owner that has a line, once, and the reserve.
    turns: VecDeque<Turn>,
    len: usize,
    /// No claim's deadline is before this one.
    next_deadline: Option<Instant>,
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self { lines: HashMap::new(), turns: VecDeque::from([Turn::Reserve]), len: 0, next_deadline: None }
    }

    /// Claims that wait, some of whose clients may have left.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// When [`Queue::expire`] has something to do, at the earliest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// Puts a claim at the end of its owner's line. The answer is who has to go for it: the claim itself, where its
    /// owner's line is full or the longest; or the last of the longest line, where all places are taken.
    pub(crate) fn push(&mut self, claim: Claim) -> Option<Claim> {
        let mut mine = self.line_len(&claim.owner);
        if mine >= WAITING_EACH || self.len >= WAITING {
            self.forget_void();
            mine = self.line_len(&claim.owner);
        }
        if mine >= WAITING_EACH {
            return Some(claim);
        }
        if self.len < WAITING {
            self.join(claim);
            return None;
        }
        let longest = self.lines.iter().max_by_key(|(_, line)| line.len());
        let (longest, length) = longest.map(|(owner, line)| (Arc::clone(owner), line.len()))?;
        if length <= mine + 1 {
            return Some(claim);
        }
        let last = self.lines.get_mut(&longest).and_then(VecDeque::pop_back);
        self.len -= 1;
        self.join(claim);
        last
    }

    fn join(&mut self, claim: Claim) {
        self.next_deadline = Some(self.next_deadline.map_or(claim.deadline, |next| next.min(claim.deadline)));
        self.len += 1;
        match self.lines.entry(Arc::clone(&claim.owner)) {
            Entry::Occupied(line) => line.into_mut().push_back(claim),
            Entry::Vacant(place) => {
                self.turns.push_back(Turn::Owner(Arc::clone(&claim.owner)));
                place.insert(VecDeque::from([claim]));
            }
        }
    }

    /// Takes whoever has the next turn. The reserve has one only while it is short.
    pub(crate) fn next(&mut self, reserve_is_short: bool) -> Next {
        while !self.is_empty() {
            match self.turns.pop_front() {
                Some(Turn::Reserve) => {
                    self.turns.push_back(Turn::Reserve);
                    if reserve_is_short {
                        return Next::Reserve;
                    }
                }
                Some(Turn::Owner(owner)) => {
                    if let Some(claim) = self.serve(owner) {
                        return Next::Claim(claim);
                    }
                }
                None => unreachable!("the reserve always has a turn"),
            }
        }
        Next::Nobody
    }

    /// The first of the owner's line whose client is still there; the rest of the line gets a turn later.
    fn serve(&mut self, owner: Owner) -> Option<Claim> {
        let line = self.lines.get_mut(&owner)?;
        let before = line.len();
        while line.front().is_some_and(Claim::is_void) {
            line.pop_front();
        }
        let claim = line.pop_front();
        self.len -= before - line.len();
        if line.is_empty() {
            self.lines.remove(&owner);
        } else {
            self.turns.push_back(Turn::Owner(owner));
        }
        claim
    }

    /// Takes out every claim whose deadline has passed, and drops those whose clients have left.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Claim> {
        let mut expired = Vec::new();
        if self.next_deadline.is_some_and(|next| next <= now) {
            self.sort_out(|claim| claim.deadline <= now, &mut expired);
        }
        expired
    }

    /// Drops the claims whose clients have left.
    pub(crate) fn forget_void(&mut self) {
        self.sort_out(|_| false, &mut Vec::new());
    }

    fn sort_out(&mut self, leaves: impl Fn(&Claim) -> bool, left: &mut Vec<Claim>) {
        for line in self.lines.values_mut() {
            line.retain(|claim| !claim.is_void());
            if line.iter().any(&leaves) {
                let (leaving, staying): (VecDeque<_>, VecDeque<_>) = line.drain(..).partition(&leaves);
                left.extend(leaving);
                *line = staying;
            }
        }
        self.lines.retain(|_, line| !line.is_empty());
        let lines = &self.lines;
        self.turns.retain(|turn| match turn {
            Turn::Owner(owner) => lines.contains_key(owner),
            Turn::Reserve => true,
        });
        self.len = self.lines.values().map(VecDeque::len).sum();
        self.next_deadline = self.lines.values().flatten().map(|claim| claim.deadline).min();
    }

    /// Takes all of them out.
    pub(crate) fn drain(&mut self) -> Vec<Claim> {
        let all = self.lines.drain().flat_map(|(_, line)| line).collect();
        *self = Self::new();
        all
    }

    /// How many browsers others get before a claim that this owner would make now: each of the others has a turn as often
    /// as the owner has one, if its line is that long.
    pub(crate) fn ahead_of(&self, owner: &Owner) -> usize {
        let mine = self.line_len(owner);
        let others = self.lines.iter().filter(|(other, _)| *other != owner);
        mine + others.map(|(_, line)| line.len().min(mine + 1)).sum::<usize>()
    }

    fn line_len(&self, owner: &Owner) -> usize {
        self.lines.get(owner).map_or(0, VecDeque::len)
    }
}
