//! Sessions looked at by the paused clock.

use std::net::IpAddr;
use std::sync::Mutex;
use std::task::{Context, Waker};

use tokio::time::{advance, sleep};

use super::*;
use crate::sessions::{Attached, Sessions};

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const LIMITS: Limits = Limits {
    max_duration: Duration::from_secs(86_400),
    idle_timeout: Duration::from_secs(600),
    connect_timeout: Duration::from_secs(300),
};
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_session_has_a_limit_of_its_own() {
    let sessions = Sessions::default();
    let attached = sessions.begin(live(5 * MINUTE), CLIENT);
    look_for(&sessions, Duration::from_secs(299)).await;
    assert_eq!(told(&attached), None);
    look_for(&sessions, LOOK).await;
    assert_eq!(told(&attached), Some(Close::TimeLimit));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_it_and_a_byte_goes_on() {
    let sessions = Sessions::default();
    let attached = sessions.begin(live(LIMITS.max_duration), CLIENT);
    look_for(&sessions, 9 * MINUTE).await;
    attached.live().down_bytes.fetch_add(1, Ordering::Relaxed);
    look_for(&sessions, 9 * MINUTE).await;
    assert_eq!(told(&attached), None);
    look_for(&sessions, 2 * MINUTE).await;
    assert_eq!(told(&attached), Some(Close::Idle));
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_socket_waits_for_one() {
    let sessions = Sessions::default();
    let (kept, waits) = (live(LIMITS.max_duration), live(LIMITS.max_duration));
    let _keepers = [sessions.begin_detached(Arc::clone(&kept)), sessions.begin_detached(Arc::clone(&waits))];
    look_for(&sessions, 4 * MINUTE).await;
    let attached = sessions.attach_alone(&kept, CLIENT).unwrap();
    // The minutes in which nobody could say anything are no silence.
    look_for(&sessions, 9 * MINUTE).await;
    assert_eq!(told(&attached), None);
    assert_eq!(waits.told().map(|reason| reason.close), Some(Close::NotConnected));
    look_for(&sessions, 2 * MINUTE).await;
    assert_eq!(told(&attached), Some(Close::Idle));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_socket_is_pinged_each_half_minute() {
    let sessions = Sessions::default();
    let quiet = sessions.begin(live(LIMITS.max_duration), CLIENT);
    let busy = sessions.join(quiet.live(), CLIENT).unwrap();
    for _ in 0..3 {
        look_for(&sessions, Duration::from_secs(29)).await;
        assert!(!quiet.line().take_ping());
        busy.line().note_traffic();
        look_for(&sessions, LOOK).await;
        assert!(quiet.line().take_ping(), "30 s have passed");
        assert!(!quiet.line().take_ping(), "once");
        assert!(!busy.line().take_ping(), "each socket by itself");
    }
    // The client's answer is traffic, and no activity.
    quiet.line().note_traffic();
    look_for(&sessions, Duration::from_secs(30)).await;
    assert!(!quiet.line().take_ping());
    look_for(&sessions, LIMITS.idle_timeout).await;
    assert_eq!(told(&quiet), Some(Close::Idle));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_is_woken_for_a_ping() {
    let sessions = Sessions::default();
    let attached = sessions.begin(live(LIMITS.max_duration), CLIENT);
    let pinged = std::future::poll_fn(|cx| {
        assert_eq!(attached.live().poll_end(attached.line(), cx), None);
        if attached.line().take_ping() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    });
    let looks = async {
        loop {
            look_for(&sessions, LOOK).await;
            sleep(Duration::ZERO).await;
        }
    };
    tokio::select! {
        () = pinged => {}
        () = looks => unreachable!("it does not end"),
    }
}

/// What is logged, in the calling thread.
#[tokio::test(start_paused = true)]
async fn the_log_warns_once_before_each_end() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let sessions = Sessions::default();
    let attached = sessions.begin(live(20 * MINUTE), CLIENT);

    look_for(&sessions, 9 * MINUTE).await;
    let idle = "a session ends soon";
    assert_eq!(log.lines_with(idle), 1);
    assert_eq!(log.lines_with(r#"cause="idle" seconds=60"#), 1);
    attached.live().up_bytes.fetch_add(1, Ordering::Relaxed);
    look_for(&sessions, 9 * MINUTE + LOOK).await;
    assert_eq!(log.lines_with(r#"cause="idle" seconds=60"#), 2, "it is silent again");
    look_for(&sessions, MINUTE - LOOK).await;
    assert_eq!(log.lines_with(r#"cause="time limit" seconds=60"#), 1);
    assert_eq!(log.lines_with(idle), 3);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines_with(&self, words: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap()).lines().filter(|line| line.contains(words)).count()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn warnings_come_a_minute_before_or_at_nine_tenths() {
    let seconds = Duration::from_secs;
    let cases = [(24 * 3_600, 24 * 3_600 - 60), (600, 540), (100, 90), (10, 9)];
    for (limit, warned) in cases {
        assert!(!is_near(seconds(warned - 1), seconds(limit)), "{limit}");
        assert!(is_near(seconds(warned), seconds(limit)), "{limit}");
    }
}

/// As [`enforce`] does, for so long.
async fn look_for(sessions: &Sessions, time: Duration) {
    for _ in 0..time.as_secs() {
        advance(LOOK).await;
        sessions.for_each(|live| LIMITS.apply(live));
    }
}

fn told(attached: &Attached<'_>) -> Option<Close> {
    attached.live().poll_end(attached.line(), &mut Context::from_waker(Waker::noop()))
}

fn live(max_duration: Duration) -> Arc<Live> {
    let mut live = Live::somebody_s();
    live.max_duration = max_duration;
    Arc::new(live)
}
