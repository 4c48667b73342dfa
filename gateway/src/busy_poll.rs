//! Staying awake for a moment behind a message, since waking a thread that sleeps takes longer than all that a gateway does
//! with the next one.
//!
//! Where messages follow each other quickly (a command, its reply, the next command), an edge thread does not go to sleep
//! between them but looks again and again, as Linux does for sockets with `SO_BUSY_POLL` and HAProxy with `busy-polling`.
//! Unlike these it stops soon: after [`LULL`] without a message, and at once where somebody else wants its CPU, whom it
//! lets pass at each turn. What is first behind a silence keeps nobody awake: a browser that begins to work needs the CPU more.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than a browser takes for a simple command (100 µs) and a script to think of the next, in a virtual machine.
const LULL: Duration = Duration::from_micros(300);
/// Whom we let pass takes this long only where he has more to do than to pass a message on.
const CONTENDED: Duration = Duration::from_millis(1);
/// How long a thread sleeps as usual where its CPU was wanted; twice as long each time that it is wanted again at once.
/// Each try costs up to a time slice (3 ms), which at most is three thousandths of the time.
const SHORTEST_REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_secs(1);

thread_local! {
    static WATCH: Watch = const { Watch::new() };
}

/// What a thread knows of its messages.
struct Watch {
    last: Cell<Option<Instant>>,
    /// Until then it does not go to sleep.
    until: Cell<Option<Instant>>,
    /// Before that it does, whatever comes.
    rested: Cell<Option<Instant>>,
    last_rest: Cell<Duration>,
    /// The task of [`keep_awake`] while it has nothing to do. None where there is no such task.
    idle: RefCell<Option<Waker>>,
}

/// Notes that this thread has passed something on.
pub(crate) fn note_message() {
    WATCH.with(|watch| watch.note(Instant::now()));
}

/// Keeps this thread awake where that is worth it. Never ends.
pub(crate) async fn keep_awake() {
    loop {
        poll_fn(|cx| WATCH.with(|watch| watch.poll_awake(Instant::now(), cx))).await;
        let before = Instant::now();
        thread::yield_now();
        WATCH.with(|watch| watch.note_yield(before, Instant::now()));
        // The reactor's turn, which looks for what has come and does not wait for it.
        tokio::task::yield_now().await;
    }
}

impl Watch {
    const fn new() -> Self {
        Self {
            last: Cell::new(None),
            until: Cell::new(None),
            rested: Cell::new(None),
            last_rest: Cell::new(SHORTEST_REST),
            idle: RefCell::new(None),
        }
    }

    fn note(&self, now: Instant) {
        let last = self.last.replace(Some(now));
        let is_quick = last.is_some_and(|last| now - last < LULL);
        if is_quick && self.rested.get().is_none_or(|rested| rested <= now) {
            self.until.set(Some(now + LULL));
            if let Some(task) = self.idle.take() {
                task.wake();
            }
        }
    }

    fn is_awake(&self, now: Instant) -> bool {
        self.until.get().is_some_and(|until| now < until)
    }

    /// Ready while this thread is to stay awake.
    fn poll_awake(&self, now: Instant, cx: &Context<'_>) -> Poll<()> {
        if self.is_awake(now) {
            return Poll::Ready(());
        }
        self.idle.replace(Some(cx.waker().clone()));
        Poll::Pending
    }

    fn note_yield(&self, before: Instant, after: Instant) {
        if after - before <= CONTENDED {
            return;
        }
        let is_again = self.rested.get().is_some_and(|rested| before < rested + LONGEST_REST);
        let rest = if is_again { (2 * self.last_rest.get()).min(LONGEST_REST) } else { SHORTEST_REST };
        self.last_rest.set(rest);
        self.rested.set(Some(after + rest));
        self.until.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_micros(100);

    fn is_awake(watch: &Watch, now: Instant) -> bool {
        watch.poll_awake(now, &Context::from_waker(Waker::noop())).is_ready()
    }

    fn talk_quickly(watch: &Watch, start: Instant) -> Instant {
        watch.note(start);
        watch.note(start + MOMENT);
        start + MOMENT
    }

    /// Lets somebody pass who takes longer than a moment.
    fn meet_somebody(watch: &Watch, start: Instant) -> Instant {
        let end = start + 2 * CONTENDED;
        watch.note_yield(start, end);
        end
    }

    #[test]
    fn what_is_first_behind_a_silence_keeps_nobody_awake() {
        let (watch, start) = (Watch::new(), Instant::now());
        watch.note(start);
        assert!(!is_awake(&watch, start));
        watch.note(start + LULL);
        assert!(!is_awake(&watch, start + LULL));
    }

    #[test]
    fn a_quick_conversation_keeps_awake_until_it_lulls() {
        let (watch, start) = (Watch::new(), Instant::now());
        watch.note(start);
        watch.note(start + MOMENT);
        assert!(is_awake(&watch, start + MOMENT));
        watch.note(start + 3 * MOMENT);
        assert!(is_awake(&watch, start + 5 * MOMENT));
        assert!(!is_awake(&watch, start + 6 * MOMENT));
    }

    #[test]
    fn a_message_wakes_the_task_that_keeps_awake() {
        let (watch, start) = (Watch::new(), Instant::now());
        watch.note(start);
        assert!(!is_awake(&watch, start));
        assert!(watch.idle.borrow().is_some());
        watch.note(start + MOMENT);
        assert!(watch.idle.borrow().is_none(), "it is woken once");
    }

    #[test]
    fn a_thread_rests_where_its_cpu_is_wanted() {
        let (watch, start) = (Watch::new(), Instant::now());
        let now = talk_quickly(&watch, start);
        watch.note_yield(now, now + CONTENDED);
        assert!(is_awake(&watch, now), "so long it may take to pass a message on");
        let met = meet_somebody(&watch, now);
        let now = talk_quickly(&watch, met);
        assert!(!is_awake(&watch, now));
        let now = talk_quickly(&watch, met + SHORTEST_REST);
        assert!(is_awake(&watch, now));
    }

    #[test]
    fn it_rests_longer_each_time_until_it_was_left_alone() {
        let (watch, mut now) = (Watch::new(), Instant::now());
        for rest in [SHORTEST_REST, 2 * SHORTEST_REST, 4 * SHORTEST_REST] {
            now = meet_somebody(&watch, now) + rest;
            assert_eq!(watch.rested.get(), Some(now));
        }
        for _ in 0..20 {
            now = meet_somebody(&watch, now) + LONGEST_REST / 2;
        }
        assert_eq!(watch.rested.get(), Some(now + LONGEST_REST / 2));
        now = meet_somebody(&watch, now + LONGEST_REST / 2 + LONGEST_REST);
        assert_eq!(watch.rested.get(), Some(now + SHORTEST_REST));
    }
}
