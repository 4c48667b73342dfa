//! The query of a connect URL: a credential and the session's parameters. What nobody knows is refused, since a
//! parameter that is ignored is a surprise on a bill.

use std::fmt;

use crate::refusal::Refusal;

/// The parsed query.
#[derive(Default)]
pub struct Query {
    credential: Option<String>,
}

impl fmt::Debug for Query {
    /// Without the credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Query").finish_non_exhaustive()
    }
}

impl Query {
    /// Parses `application/x-www-form-urlencoded` pairs.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownParameter`].
    pub fn parse(query: Option<&str>) -> Result<Self, Refusal> {
        let mut parsed = Self::default();
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        for (name, value) in pairs {
            match name.as_ref() {
                "token" | "apiKey" => parsed.credential = Some(value.into_owned()),
                unknown => return Err(Refusal::UnknownParameter(unknown.to_owned())),
            }
        }
        Ok(parsed)
    }

    /// `?token=` or `?apiKey=`; the last one given.
    pub fn credential(&self) -> Option<&str> {
        self.credential.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_strangers() {
        assert_eq!(Query::parse(Some("token=a%5Fb")).ok().unwrap().credential(), Some("a_b"));
        assert_eq!(Query::parse(Some("apiKey=c")).ok().unwrap().credential(), Some("c"));
        assert_eq!(Query::parse(None).ok().unwrap().credential(), None);
        let refused = Query::parse(Some("token=a&stealth=1")).err();
        assert_eq!(refused, Some(Refusal::UnknownParameter("stealth".to_owned())));
    }
}
