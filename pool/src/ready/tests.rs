//! Real threads over the real queue, with sockets that nobody speaks on.

use std::collections::HashSet;
use std::io::Write;
use std::net::TcpListener;
use std::sync::Mutex;
use std::thread;

use super::*;

/// Enough for thousands of claims to meet a death, and few enough for one process's descriptors: two each.
const BROWSERS: usize = 400;
const ROUNDS: usize = 20;
const CLAIMERS: usize = 4;
const KILLERS: usize = 2;
/// Enough for both orders to be seen many times.
const MOMENTS: usize = 20_000;

#[test]
fn none_is_given_twice_and_no_dead_one_at_all() {
    for _ in 0..ROUNDS {
        let ready = Ready::new(BROWSERS);
        let (warm, _far): (Vec<_>, Vec<_>) = (0..BROWSERS).map(warm).unzip();
        let browsers: Vec<_> = warm.iter().map(|warm| Arc::clone(&warm.browser)).collect();
        let (taken, killed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let settled = || taken.lock().unwrap().len() + killed.lock().unwrap().len();
        let pushed = AtomicUsize::new(0);

        thread::scope(|scope| {
            for _ in 0..CLAIMERS {
                scope.spawn(|| {
                    while settled() < BROWSERS {
                        let Some(warm) = ready.pop() else { continue };
                        taken.lock().unwrap().push(warm);
                    }
                });
            }
            for killer in 0..KILLERS {
                let (browsers, pushed, killed, ready) = (&browsers, &pushed, &killed, &ready);
                scope.spawn(move || {
                    for (number, browser) in browsers.iter().enumerate().skip(killer).step_by(3) {
                        // The warmer hears of an end only after it has pushed.
                        while pushed.load(Ordering::Acquire) <= number {
                            thread::yield_now();
                        }
                        if browser.claimable.die() {
                            ready.forget();
                            killed.lock().unwrap().push(name(browser));
                        }
                    }
                });
            }
            // What the warmer does.
            for warm in warm {
                ready.push(warm).unwrap();
                pushed.fetch_add(1, Ordering::AcqRel);
                ready.sweep();
            }
        });

        let taken: Vec<_> = taken.into_inner().unwrap().iter().map(|warm| name(&warm.browser)).collect();
        let killed = killed.into_inner().unwrap();
        let each: HashSet<_> = taken.iter().chain(&killed).collect();
        assert_eq!(each.len(), BROWSERS, "every one was taken or died");
        assert_eq!(taken.len() + killed.len(), BROWSERS, "and only one of the two, once");
        assert_eq!(ready.len(), 0);
        assert!(ready.pop().is_none());
    }
}

#[test]
fn a_claim_and_a_death_at_the_same_moment() {
    let browsers: Vec<_> = (0..MOMENTS).map(|_| Claimable::new()).collect();
    let moment = AtomicUsize::new(0);
    // Both come to the same browser before either goes on to it.
    let in_step = |number: usize| {
        moment.fetch_add(1, Ordering::AcqRel);
        while moment.load(Ordering::Acquire) < 2 * (number + 1) {
            thread::yield_now();
        }
    };
    let wins = |try_one: fn(&Claimable) -> bool| {
        let each = browsers.iter().enumerate();
        each.filter(|(number, browser)| {
            in_step(*number);
            try_one(browser)
        })
        .count()
    };

    let (taken, died) = thread::scope(|scope| {
        let claimer = scope.spawn(|| wins(Claimable::take));
        let died = wins(Claimable::die);
        (claimer.join().unwrap(), died)
    });

    assert_eq!(taken + died, MOMENTS, "each time one of the two, and never both");
}

#[test]
fn a_socket_that_has_something_to_say_is_not_handed_out() {
    let ready = Ready::new(3);
    let [(spoke, mut far), (ended, gone), (quiet, _far)] = [0, 1, 2].map(warm);
    let last = name(&quiet.browser);
    for warm in [spoke, ended, quiet] {
        ready.push(warm).unwrap();
    }
    far.write_all(b"x").unwrap();
    drop(gone);

    assert_eq!(name(&ready.pop().unwrap().browser), last);
    assert_eq!(ready.len(), 0);
}

#[test]
fn a_sweep_drops_what_is_dead_and_keeps_the_rest_in_order() {
    let ready = Ready::new(4);
    let [(first, _first), (ended, gone), (killed, _killed), (last, _last)] = [0, 1, 2, 3].map(warm);
    let corpse = Arc::clone(&killed.browser);
    for warm in [first, ended, killed, last] {
        ready.push(warm).unwrap();
    }
    drop(gone);
    assert!(corpse.claimable.die());
    ready.forget();

    ready.sweep();

    assert_eq!((ready.len(), ready.queue.len()), (2, 2));
    assert!(!corpse.claimable.die(), "one death is counted once");
    let order: Vec<_> = std::iter::from_fn(|| ready.pop()).map(|warm| name(&warm.browser)).collect();
    assert_eq!(order, ["0", "3"]);
}

#[test]
fn one_that_finds_no_room_is_given_back_uncounted() {
    let ready = Ready::new(1);
    let (warm, _far): (Vec<_>, Vec<_>) = (0..=1 + SLACK).map(warm).unzip();
    let refused: Vec<_> = warm.into_iter().filter_map(|warm| ready.push(warm).err()).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(ready.len(), 1 + SLACK);
}

/// A browser of that number, and the far end of its socket.
fn warm(number: usize) -> (Warm, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    (Warm { browser: Arc::new(Browser::for_tests(number.to_string())), socket }, far)
}

fn name(browser: &Browser) -> String {
    browser.endpoint.path.clone()
}
