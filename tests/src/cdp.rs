//! A client that speaks the Chrome DevTools Protocol, and can misbehave.

use std::os::fd::AsFd;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use rustix::net::sockopt::set_socket_linger;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::Pid;

/// What Playwright and Puppeteer accept.
const LARGEST_MESSAGE: usize = 256 << 20;

/// An open WebSocket to a browser. Dropping it ends the connection without a close frame.
#[derive(Debug)]
pub struct Cdp {
    socket: WebSocketStream<TcpStream>,
    last_id: u64,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// By a close frame, with its code and reason.
    Closed(u16, String),
    /// By the end of the TCP connection.
    Dropped,
}

impl Ending {
    /// The close frame's code.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Closed(code, _) => Some(*code),
            Self::Dropped => None,
        }
    }
}

impl Cdp {
    pub(crate) async fn new(stream: TcpStream, already_read: Vec<u8>) -> Self {
        let limits = WebSocketConfig::default()
            .max_message_size(Some(LARGEST_MESSAGE))
            .max_frame_size(Some(LARGEST_MESSAGE));
        let socket =
            WebSocketStream::from_partially_read(stream, already_read, Role::Client, Some(limits)).await;
        Self { socket, last_id: 0 }
    }

    /// Sends a command to the browser and waits for its result, past any events.
    ///
    /// # Errors
    ///
    /// The browser answered with an error, or the connection ended first.
    pub async fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        let id = self.send(json!({ "method": method, "params": params })).await?;
        self.result(id).await
    }

    /// The same for one page, to which [`Cdp::open_page`] attached.
    ///
    /// # Errors
    ///
    /// Those of [`Cdp::call`].
    pub async fn call_page(&mut self, page: &str, method: &str, params: Value) -> Result<Value> {
        let id = self.send(json!({ "sessionId": page, "method": method, "params": params })).await?;
        self.result(id).await
    }

    /// The browser's own process.
    ///
    /// # Errors
    ///
    /// Those of [`Cdp::call`].
    pub async fn browser(&mut self) -> Result<Pid> {
        let processes = self.call("SystemInfo.getProcessInfo", json!({})).await?;
        let all = processes["processInfo"].as_array().context("no processes")?;
        let browser = all.iter().find(|process| process["type"] == "browser").context("no browser")?;
        Pid::new(browser["id"].as_i64().context("no process id")?)
    }

    /// Opens an empty page and attaches to it. The answer names the attachment.
    ///
    /// # Errors
    ///
    /// Those of [`Cdp::call`].
    pub async fn open_page(&mut self) -> Result<String> {
        let target = self.call("Target.createTarget", json!({ "url": "about:blank" })).await?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.call("Target.attachToTarget", attach).await?;
        Ok(attached["sessionId"].as_str().context("no sessionId")?.to_owned())
    }

    /// Evaluates `expression` in a page. The answer is its value.
    ///
    /// # Errors
    ///
    /// Those of [`Cdp::call`].
    pub async fn evaluate(&mut self, page: &str, expression: &str) -> Result<Value> {
        let params = json!({ "expression": expression, "returnByValue": true });
        let mut evaluated = self.call_page(page, "Runtime.evaluate", params).await?;
        Ok(evaluated["result"]["value"].take())
    }

    /// Sends a command without waiting for its result. Returns when the kernel has taken all of it. The answer is the
    /// command's id.
    ///
    /// # Errors
    ///
    /// The connection ended.
    pub async fn send(&mut self, mut command: Value) -> Result<u64> {
        self.last_id += 1;
        command["id"] = self.last_id.into();
        self.socket.send(Message::text(command.to_string())).await?;
        Ok(self.last_id)
    }

    /// Waits for the result of the command `id`, past any events.
    ///
    /// # Errors
    ///
    /// The browser answered with an error, or the connection ended first.
    pub async fn result(&mut self, id: u64) -> Result<Value> {
        loop {
            let mut message: Value = match self.socket.next().await.context("the connection ended")?? {
                Message::Text(text) => serde_json::from_str(&text)?,
                Message::Close(frame) => bail!("closed by {frame:?}"),
                _ => continue,
            };
            if message["id"] == id {
                ensure!(message.get("error").is_none(), "the browser refused: {message}");
                return Ok(message["result"].take());
            }
        }
    }

    /// Reads until the other side ends the connection.
    ///
    /// # Errors
    ///
    /// What arrived is not a WebSocket's.
    pub async fn ending(&mut self) -> Result<Ending> {
        self.end(|_| Ok(())).await
    }

    /// The same for a browser that has nothing to say before the end.
    ///
    /// # Errors
    ///
    /// Those of [`Cdp::ending`], or it said something.
    pub async fn ending_without_a_word(&mut self) -> Result<Ending> {
        self.end(|message| bail!("the browser said {message}")).await
    }

    async fn end(&mut self, heard: impl Fn(Message) -> Result<()>) -> Result<Ending> {
        while let Some(message) = self.socket.next().await {
            match message {
                Ok(Message::Close(Some(frame))) => {
                    return Ok(Ending::Closed(frame.code.into(), frame.reason.to_string()));
                }
                Ok(message) => heard(message)?,
                Err(Error::Io(_) | Error::Protocol(_)) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Ending::Dropped)
    }

    /// Ends the session in an orderly way: a close frame each way.
    ///
    /// # Errors
    ///
    /// The connection had ended, or what arrived is not a WebSocket's.
    pub async fn close(mut self) -> Result<Ending> {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "done".into() };
        self.socket.send(Message::Close(Some(frame))).await?;
        self.ending().await
    }

    /// Vanishes like a client that crashed: the kernel sends a reset, and no close frame.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn vanish(self) -> Result<()> {
        let stream = self.socket.into_inner();
        // Closing a socket that lingers for no time at all sends a reset.
        set_socket_linger(stream.as_fd(), Some(std::time::Duration::ZERO))?;
        Ok(())
    }

    /// Sends bytes that need be no frames. Returns when the kernel has taken all of them.
    ///
    /// # Errors
    ///
    /// The connection ended.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.socket.get_mut().write_all(bytes).await?)
    }

    /// Says that nothing more will come, and goes on reading.
    ///
    /// # Errors
    ///
    /// The connection ended.
    pub async fn half_close(&mut self) -> Result<()> {
        Ok(self.socket.get_mut().shutdown().await?)
    }

    /// How many bytes wait in the kernel to be read.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn waiting_bytes(&self) -> Result<u64> {
        Ok(rustix::io::ioctl_fionread(self.socket.get_ref())?)
    }
}
