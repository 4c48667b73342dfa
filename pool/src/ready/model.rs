//! Every interleaving of a few claims, a death and the warmer, by loom: no browser is given twice, none is lost, and the
//! count is right once all is quiet.
//!
//! loom cannot see inside crossbeam's queue, so a queue stands in for it that is a list under a lock: as atomic as that one
//! promises to be. `tests.rs` stresses the real one.

use std::collections::VecDeque;

use loom::sync::Arc;
use loom::sync::Mutex;
use loom::sync::atomic::AtomicBool;
use loom::thread;

use super::*;

/// Of a queue's methods those that are used.
#[derive(Debug)]
pub(super) struct ArrayQueue<T> {
    entries: Mutex<VecDeque<T>>,
    room: usize,
}

impl<T> ArrayQueue<T> {
    pub(super) fn new(room: usize) -> Self {
        Self { entries: Mutex::new(VecDeque::new()), room }
    }

    pub(super) fn push(&self, entry: T) -> Result<(), T> {
        let mut entries = self.entries.lock().expect("no thread panics");
        if entries.len() >= self.room {
            return Err(entry);
        }
        entries.push_back(entry);
        Ok(())
    }

    pub(super) fn pop(&self) -> Option<T> {
        self.entries.lock().expect("no thread panics").pop_front()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.lock().expect("no thread panics").len()
    }
}

/// A browser without a process or a socket.
#[derive(Debug)]
struct Model {
    claimable: Claimable,
    quiet: AtomicBool,
    stopped: AtomicBool,
}

impl Model {
    fn new() -> Arc<Self> {
        let (quiet, stopped) = (AtomicBool::new(true), AtomicBool::new(false));
        Arc::new(Self { claimable: Claimable::new(), quiet, stopped })
    }

    /// Its process ended. True: it died unclaimed.
    fn exits(&self, ready: &Ready<Arc<Self>>) -> bool {
        let unclaimed = self.claimable.die();
        if unclaimed {
            ready.forget();
        }
        unclaimed
    }
}

impl Entry for Arc<Model> {
    fn claimable(&self) -> &Claimable {
        &self.claimable
    }

    fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Acquire)
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }
}

type Shelf = Arc<Ready<Arc<Model>>>;

fn shelf() -> Shelf {
    Arc::new(Ready::new(2))
}

fn claimer(ready: &Shelf) -> thread::JoinHandle<Option<Arc<Model>>> {
    let ready = Arc::clone(ready);
    thread::spawn(move || ready.pop())
}

/// How often each of `browsers` is among `given`.
fn times<const N: usize>(browsers: &[Arc<Model>; N], given: &[Arc<Model>]) -> [usize; N] {
    std::array::from_fn(|number| given.iter().filter(|one| Arc::ptr_eq(one, &browsers[number])).count())
}

#[test]
fn two_claims_never_get_the_same_one() {
    loom::model(|| {
        let (ready, browsers) = (shelf(), [Model::new(), Model::new()]);
        for browser in &browsers {
            ready.push(Arc::clone(browser)).unwrap();
        }
        let claimers = [claimer(&ready), claimer(&ready)];
        let given: Vec<_> = claimers.into_iter().filter_map(|claimer| claimer.join().unwrap()).collect();
        assert_eq!(times(&browsers, &given), [1, 1]);
        assert_eq!(ready.len(), 0);
    });
}

#[test]
fn a_claim_meets_a_push() {
    loom::model(|| {
        let (ready, browsers) = (shelf(), [Model::new(), Model::new()]);
        ready.push(Arc::clone(&browsers[0])).unwrap();
        let claimers = [claimer(&ready), claimer(&ready)];
        ready.push(Arc::clone(&browsers[1])).unwrap();
        let mut given: Vec<_> = claimers.into_iter().filter_map(|claimer| claimer.join().unwrap()).collect();
        // Whom nobody got is still there.
        assert_eq!(ready.len(), 2 - given.len());
        given.extend(std::iter::from_fn(|| ready.pop()));
        assert_eq!(times(&browsers, &given), [1, 1]);
        assert_eq!(ready.len(), 0);
    });
}

#[test]
fn a_claim_meets_a_death() {
    loom::model(|| {
        let (ready, browsers) = (shelf(), [Model::new(), Model::new()]);
        for browser in &browsers {
            ready.push(Arc::clone(browser)).unwrap();
        }
        let claimers = [claimer(&ready), claimer(&ready)];
        let died = browsers[0].exits(&ready);
        let given: Vec<_> = claimers.into_iter().filter_map(|claimer| claimer.join().unwrap()).collect();
        assert_eq!(times(&browsers, &given), [usize::from(!died), 1], "claimed or dead, never both");
        assert_eq!(ready.len(), 0);
        assert!(ready.pop().is_none());
    });
}

#[test]
fn a_claim_meets_a_sweep_and_a_death() {
    loom::model(|| {
        let (ready, browsers) = (shelf(), [Model::new(), Model::new()]);
        for browser in &browsers {
            ready.push(Arc::clone(browser)).unwrap();
        }
        let claimer = claimer(&ready);
        let died = browsers[0].exits(&ready);
        ready.sweep();
        let mut given: Vec<_> = claimer.join().unwrap().into_iter().collect();
        given.extend(std::iter::from_fn(|| ready.pop()));
        assert_eq!(times(&browsers, &given), [usize::from(!died), 1], "a sweep loses none that lives");
        assert_eq!(ready.len(), 0);
    });
}

#[test]
fn a_claim_and_a_sweep_meet_a_socket_that_ends() {
    loom::model(|| {
        let (ready, browsers) = (shelf(), [Model::new(), Model::new()]);
        for browser in &browsers {
            ready.push(Arc::clone(browser)).unwrap();
        }
        let claimer = claimer(&ready);
        let ends = Arc::clone(&browsers[1]);
        let ending = thread::spawn(move || ends.quiet.store(false, Ordering::Release));
        ready.sweep();
        ending.join().unwrap();
        let mut given: Vec<_> = claimer.join().unwrap().into_iter().collect();
        given.extend(std::iter::from_fn(|| ready.pop()));
        let [first, second] = times(&browsers, &given);
        assert_eq!(first, 1);
        let stopped = browsers[1].stopped.load(Ordering::Acquire);
        assert_eq!(second + usize::from(stopped), 1, "given before its end, or stopped");
        assert_eq!(ready.len(), 0);
    });
}
