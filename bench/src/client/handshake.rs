//! The client's side of the WebSocket handshake.

use std::net::SocketAddr;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::http::Uri;

use super::fault::Cause;
use crate::head::Head;

/// Longer than any answer to an upgrade, its body included.
const ANSWER_LIMIT: usize = 64 * 1024;

/// Asks for the upgrade; returns what was read behind the answer's head.
pub(super) async fn upgrade(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    uri: &Uri,
    address: SocketAddr,
) -> Result<Vec<u8>, Cause> {
    let key = generate_key();
    let host = uri.authority().map_or_else(|| address.to_string(), |authority| authority.to_string());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        if let Some((head, rest)) = Head::split(&answer) {
            if head.second_word() != "101" {
                return Err(refusal(stream, &answer).await);
            }
            if head.header("sec-websocket-accept") != Some(&derive_accept_key(key.as_bytes())) {
                return Err(Cause::NoWebSocket("the answer's Sec-WebSocket-Accept is wrong"));
            }
            return Ok(rest.to_vec());
        }
        read_more(stream, &mut answer).await?;
    }
}

async fn read_more(stream: &mut (impl AsyncRead + Unpin), answer: &mut Vec<u8>) -> Result<(), Cause> {
    if answer.len() > ANSWER_LIMIT {
        return Err(Cause::NoWebSocket("the answer has no end"));
    }
    match stream.read_buf(answer).await? {
        0 => Err(Cause::NoWebSocket("the connection ended before an answer")),
        _ => Ok(()),
    }
}

/// The status that came instead of a 101, and the `code` of its body, where it is a gateway's.
async fn refusal(stream: &mut (impl AsyncRead + Unpin), beginning: &[u8]) -> Cause {
    #[derive(Deserialize)]
    struct Problem {
        code: String,
    }
    let mut answer = beginning.to_vec();
    loop {
        let Some((head, rest)) = Head::split(&answer) else {
            return Cause::NoWebSocket("the answer is no HTTP");
        };
        let Ok(status) = head.second_word().parse() else {
            return Cause::NoWebSocket("the answer is no HTTP");
        };
        let length = head.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if let Some(body) = rest.get(..length) {
            let problem: Option<Problem> = serde_json::from_slice(body).ok();
            return Cause::Status(status, problem.map(|problem| problem.code));
        }
        // The status is worth telling even where the body does not come.
        if read_more(stream, &mut answer).await.is_err() {
            return Cause::Status(status, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    /// What comes of the upgrade when the server answers with `answer`, in which KEY is the right accept key.
    async fn answered(answer: &str) -> Result<Vec<u8>, Cause> {
        let (mut client, mut server) = duplex(4096);
        let uri = Uri::from_static("ws://127.0.0.1:1/path?token=T");
        let serve = async {
            let mut request = Vec::new();
            while Head::split(&request).is_none() {
                server.read_buf(&mut request).await.unwrap();
            }
            let (head, _) = Head::split(&request).unwrap();
            assert_eq!(head.first_line, "GET /path?token=T HTTP/1.1");
            assert_eq!(head.header("host"), Some("127.0.0.1:1"));
            let accept = derive_accept_key(head.header("sec-websocket-key").unwrap().as_bytes());
            server.write_all(answer.replace("KEY", &accept).as_bytes()).await.unwrap();
            drop(server);
        };
        tokio::join!(upgrade(&mut client, &uri, "127.0.0.1:1".parse().unwrap()), serve).0
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_not_lost() {
        let early = answered("HTTP/1.1 101 x\r\nSec-WebSocket-Accept: KEY\r\n\r\nearly").await.unwrap();
        assert_eq!(early, b"early");
    }

    #[tokio::test]
    async fn a_refusal_names_its_status_and_its_code() {
        let refused = answered("HTTP/1.1 402 x\r\nContent-Length: 13\r\n\r\n{\"code\":\"no\"}").await;
        assert!(matches!(refused, Err(Cause::Status(402, Some(code))) if code == "no"));
        let cut = answered("HTTP/1.1 503 x\r\nContent-Length: 13\r\n\r\n{").await;
        assert!(matches!(cut, Err(Cause::Status(503, None))));
        let wrong = answered("HTTP/1.1 101 x\r\nSec-WebSocket-Accept: else\r\n\r\n").await;
        assert!(matches!(wrong, Err(Cause::NoWebSocket(_))));
        assert!(matches!(answered("").await, Err(Cause::NoWebSocket(_))));
    }
}
