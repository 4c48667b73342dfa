use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

#[test]
fn only_public_addresses_are_public() {
    for public in [
        "1.1.1.1",
        "100.63.0.1",
        "100.128.0.1",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "198.17.0.1",
        "223.255.255.255",
        "2606:4700::1111",
        "2001:4860:4860::8888",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
    ] {
        assert!(is_public(public.parse().unwrap()), "{public}");
    }
    for private in [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.8.8.8",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "2001::1",
        "2001:db8::1",
        "3fff::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ] {
        assert!(!is_public(private.parse().unwrap()), "{private}");
    }
}

#[test]
fn urls_are_parsed() {
    let target = Target::parse("https://example.com/hook?of=acme", false).unwrap();
    assert_eq!((target.host.as_str(), target.port, target.secure), ("example.com", 443, true));
    assert_eq!((target.authority.as_str(), target.path.as_str()), ("example.com", "/hook?of=acme"));
    let target = Target::parse("https://[2606:4700::1111]:8443", false).unwrap();
    assert_eq!((target.host.as_str(), target.port, target.path.as_str()), ("2606:4700::1111", 8443, "/"));
    assert!(Target::parse("http://127.0.0.1:8000/", true).is_ok());
    for (url, wrong) in [
        ("", BadUrl::NotOne),
        ("example.com", BadUrl::NotOne),
        ("/hook", BadUrl::NotOne),
        ("ftp://example.com/", BadUrl::NotOne),
        ("https://", BadUrl::NotOne),
        ("https://example.com:0/", BadUrl::NotOne),
        ("http://example.com/", BadUrl::NotSecure),
        ("https://user:secret@example.com/", BadUrl::Login),
        ("https://127.0.0.1/", BadUrl::Private),
        ("https://[::1]/", BadUrl::Private),
        ("https://169.254.169.254/latest/meta-data", BadUrl::Private),
    ] {
        assert_eq!(Target::parse(url, false), Err(wrong), "{url}");
    }
}

fn notice(url: String) -> Notice {
    Notice { url, body: "{}".to_owned(), signature: "t=1,v1=00".to_owned() }
}

/// Answers the first request of each connection, in turn, and hangs up.
async fn receiver(answers: Vec<&'static str>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"POST /hook HTTP/1.1\r\nhost: 127.0.0.1:"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    format!("http://{address}/hook")
}

#[tokio::test]
async fn a_2xx_is_a_delivery_and_nothing_else_is() {
    let url = receiver(vec![
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
        "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 1000000\r\n\r\n",
        "no HTTP at all\r\n\r\n",
        "",
    ])
    .await;
    let sender = Sender::new(true);
    sender.send(notice(url.clone())).await.unwrap();
    for status in [302, 500] {
        let failed = sender.send(notice(url.clone())).await;
        assert!(matches!(failed, Err(Failed::Answered(answered)) if answered == status), "{failed:?}");
    }
    for _ in 0..2 {
        let failed = sender.send(notice(url.clone())).await;
        assert!(matches!(failed, Err(Failed::Broken(_))), "{failed:?}");
    }
}

/// `localhost` is a name: what is behind it is seen when it is looked up.
#[tokio::test]
async fn a_name_that_leads_to_this_machine_is_not_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let failed = Sender::new(false).send(notice(format!("https://localhost:{port}/"))).await;
    assert!(matches!(failed, Err(Failed::Private)), "{failed:?}");
    let failed = Sender::new(false).send(notice(format!("https://127.0.0.1:{port}/"))).await;
    assert!(matches!(failed, Err(Failed::Url(BadUrl::Private))), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_does_not_answer_is_not_waited_for_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let failed = Sender::new(true).send(notice(url)).await;
    assert!(matches!(failed, Err(Failed::Late)), "{failed:?}");
}
