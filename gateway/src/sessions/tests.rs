//! Who is attached to a session, and who settles it.

use std::pin::pin;
use std::task::Waker;

use super::*;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

#[test]
fn the_last_socket_that_leaves_settles() {
    let sessions = Sessions::default();
    let first = sessions.begin(live(), CLIENT);
    let live = Arc::clone(first.live());
    let second = sessions.join(&live, CLIENT).unwrap();
    let third = sessions.join(&live, CLIENT).unwrap();

    assert!(second.leave().is_none());
    assert!(first.leave().is_none());
    assert!(sessions.contains(live.name()));
    let last = third.leave().expect("it was the last one");
    assert_eq!(sessions.join(&live, CLIENT).unwrap_err(), NotAttached::Over);
    // Until it is settled it is still there, so that nobody takes it for one that was left open.
    assert!(sessions.contains(live.name()));
    drop(last);
    assert!(sessions.find(&live.account, &live.id).is_none());
}

#[test]
fn a_task_that_panics_leaves() {
    let sessions = Sessions::default();
    let attached = sessions.begin(live(), CLIENT);
    drop(attached);
    assert!(sessions.is_empty());
}

#[test]
fn all_sockets_are_told() {
    let sessions = Sessions::default();
    let first = sessions.begin(live(), CLIENT);
    let live = Arc::clone(first.live());
    let second = sessions.join(&live, CLIENT).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert_eq!(live.poll_end(first.line(), &mut cx), None);

    live.end(Close::Owner);
    live.end(Close::Draining);

    for attached in [&first, &second] {
        assert_eq!(live.poll_end(attached.line(), &mut cx), Some(Close::Owner));
    }
    assert_eq!(sessions.join(&live, CLIENT).unwrap_err(), NotAttached::Over, "it ends");
}

#[test]
fn sockets_have_a_bound() {
    let sessions = Sessions::default();
    let first = sessions.begin(live(), CLIENT);
    let live = Arc::clone(first.live());
    assert_eq!(sessions.attach_alone(&live, CLIENT).unwrap_err(), NotAttached::Connected);
    let others: Vec<_> = (1..SOCKETS).map(|_| sessions.join(&live, CLIENT).unwrap()).collect();
    assert_eq!(sessions.join(&live, CLIENT).unwrap_err(), NotAttached::TooMany);
    drop(others);
    assert!(sessions.join(&live, CLIENT).is_ok());
}

#[test]
fn a_keeper_is_relieved_by_the_first_socket() {
    let sessions = Sessions::default();
    let live = live();
    let keeper = sessions.begin_detached(Arc::clone(&live));
    let mut watch = pin!(keeper.watch(&sessions));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(watch.as_mut().poll(&mut cx).is_pending());
    assert!(live.is_detached());

    let attached = sessions.attach_alone(&live, CLIENT).unwrap();
    assert!(!live.is_detached());
    assert!(matches!(watch.as_mut().poll(&mut cx), Poll::Ready(None)));
    assert!(attached.leave().is_some());
}

#[test]
fn a_keeper_settles_what_nobody_attached_to() {
    let sessions = Sessions::default();
    let live = live();
    let keeper = sessions.begin_detached(Arc::clone(&live));
    let mut watch = pin!(keeper.watch(&sessions));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(watch.as_mut().poll(&mut cx).is_pending());

    live.end(Close::NotConnected);
    let Poll::Ready(Some(last)) = watch.as_mut().poll(&mut cx) else { panic!("it settles") };
    assert_eq!(sessions.attach_alone(&live, CLIENT).unwrap_err(), NotAttached::Over);
    drop(last);
    assert!(sessions.is_empty());
}

#[tokio::test]
async fn whoever_waits_for_the_record_is_answered() {
    let sessions = Sessions::default();
    let attached = sessions.begin(live(), CLIENT);
    let live = Arc::clone(attached.live());
    let mut settled = pin!(live.settled());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(settled.as_mut().poll(&mut cx).is_pending());
    drop(attached);
    assert_eq!(settled.await, None, "nothing was written");
    assert_eq!(live.settled().await, None);
}

fn live() -> Arc<Live> {
    Arc::new(Live::somebody_s())
}
