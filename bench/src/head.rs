//! As much of HTTP/1.1 as discovery needs, on both of its sides: the head of a message, and where it ends.

/// A message's first line and its headers.
#[derive(Debug, PartialEq)]
pub(crate) struct Head<'a> {
    pub(crate) first_line: &'a str,
    headers: &'a str,
}

impl<'a> Head<'a> {
    /// The head and what follows it, or nothing while the head is incomplete or is not text.
    pub(crate) fn split(message: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let end = message.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = str::from_utf8(&message[..end]).ok()?;
        let (first_line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
        Some((Self { first_line, headers }, &message[end + 4..]))
    }

    /// The value of the first header of this name, in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&'a str> {
        let mut fields = self.headers.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The second word of the first line: a request's path, an answer's status.
    pub(crate) fn second_word(&self) -> &'a str {
        self.first_line.split(' ').nth(1).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_and_what_follows() {
        let (head, rest) = Head::split(b"HTTP/1.1 200 OK\r\nContent-Length:2\r\nX: a:b \r\n\r\n{}").unwrap();
        assert_eq!(head.second_word(), "200");
        assert_eq!(head.header("content-length"), Some("2"));
        assert_eq!(head.header("x"), Some("a:b"));
        assert_eq!(head.header("y"), None);
        assert_eq!(rest, b"{}");
    }

    #[test]
    fn a_head_without_headers_and_an_incomplete_one() {
        assert_eq!(Head::split(b"GET / HTTP/1.1\r\n\r\n").unwrap().0.second_word(), "/");
        assert_eq!(Head::split(b"GET / HTTP/1.1\r\nHost: a\r\n"), None);
        assert_eq!(Head::split(b""), None);
    }
}
