//! The one kind of HTTP request that the pool makes: a GET to a browser's own server.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The body of one answer of 200, of at most `most` bytes with its header. Chrome keeps the connection open whatever it is
/// asked, and always tells the length.
pub(crate) async fn get(address: SocketAddr, path: &str, most: u64) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = BufReader::new(stream).take(most);
    let status = line(&mut answer).await?;
    if status.split(' ').nth(1) != Some("200") {
        return Err(io::Error::other(format!("{path} is answered with `{status}`")));
    }
    let mut length = 0;
    loop {
        let header = line(&mut answer).await?;
        match header.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap_or(0);
            }
            None if header.is_empty() => break,
            Some(_) | None => {}
        }
    }
    let mut body = Vec::new();
    answer.take(length).read_to_end(&mut body).await?;
    if body.len() as u64 == length { Ok(body) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

async fn line(answer: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<String> {
    let mut line = String::new();
    if answer.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.trim_end().len());
    Ok(line)
}
