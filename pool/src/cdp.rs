//! The few CDP commands that the pool itself speaks (<https://chromedevtools.github.io/devtools-protocol/>).

use std::io;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::lease::Endpoint;

/// Enough for the answers to the commands here, and small, since each connection of the pool passes through one.
const BUFFER: usize = 4 * 1024;

/// Why a browser did not answer as one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CdpError {
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    #[error("the WebSocket failed: {0}")]
    Socket(#[from] tungstenite::Error),
    #[error("the browser closed the socket")]
    Closed,
    #[error("unexpected answer: {0}")]
    Unexpected(String),
}

/// A CDP socket to a browser, one command at a time.
#[derive(Debug)]
pub(crate) struct Cdp {
    socket: WebSocketStream<TcpStream>,
    last_id: u64,
}

impl Cdp {
    pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Self, CdpError> {
        let stream = TcpStream::connect(endpoint.address).await?;
        stream.set_nodelay(true)?;
        // The host must be an address or localhost, or Chrome refuses; no extension is offered, or it compresses.
        let request = format!("ws://{}{}", endpoint.address, endpoint.path).into_client_request()?;
        let config = WebSocketConfig::default().read_buffer_size(BUFFER).write_buffer_size(0);
        let (socket, _) = client_async_with_config(request, stream, Some(config)).await?;
        Ok(Self { socket, last_id: 0 })
    }

    /// Sends a command to the browser target and waits for its result.
    pub(crate) async fn call(&mut self, method: &str, params: Value) -> Result<Value, CdpError> {
        self.last_id += 1;
        let command = json!({ "id": self.last_id, "method": method, "params": params });
        self.socket.send(Message::text(command.to_string())).await?;
        loop {
            let message = self.socket.next().await.ok_or(CdpError::Closed)??;
            let Message::Text(text) = message else { continue };
            let mut answer: Value =
                serde_json::from_str(&text).map_err(|error| CdpError::Unexpected(error.to_string()))?;
            if answer["id"] != self.last_id {
                continue;
            }
            return match answer.get("error") {
                None => Ok(answer["result"].take()),
                Some(error) => Err(CdpError::Unexpected(error.to_string())),
            };
        }
    }

    /// The bare socket, between two messages: every command was answered, and a browser that was asked for no events
    /// sends nothing else, so no byte is left behind in a buffer.
    pub(crate) fn into_socket(self) -> io::Result<std::net::TcpStream> {
        self.into_stream().into_std()
    }

    /// The same, still with this task's reactor.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.socket.into_inner()
    }
}
