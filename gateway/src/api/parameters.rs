//! An operation's query: its own parameters, and perhaps a credential.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::refusal::Refusal;

/// The names that a credential has in a query.
const CREDENTIALS: [&str; 2] = ["token", "apiKey"];

/// Of an operation that takes none.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct None {}

/// Tells the credential from the rest; both are queries again.
pub(super) fn split(query: Option<&str>) -> (Option<String>, String) {
    let mut credential = Option::None;
    let mut rest = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if CREDENTIALS.contains(&name.as_ref()) {
            let mut pair = form_urlencoded::Serializer::new(String::new());
            credential = Some(pair.append_pair(&name, &value).finish());
        } else {
            rest.append_pair(&name, &value);
        }
    }
    (credential, rest.finish())
}

/// # Errors
///
/// [`Refusal::UnknownParameter`], [`Refusal::BadParameter`].
pub(super) fn read<T: DeserializeOwned>(query: &str) -> Result<T, Refusal> {
    let pairs = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
    serde_path_to_error::deserialize(pairs).map_err(|error| {
        let place = error.path().to_string();
        let problem = error.into_inner().to_string();
        let name = super::culprit(&place, &problem).unwrap_or(place);
        if problem.starts_with("unknown field") {
            Refusal::UnknownParameter(name)
        } else {
            Refusal::BadParameter { name, problem }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Page {
        limit: Option<u32>,
        after_id: Option<String>,
    }

    #[test]
    fn the_credential_is_apart() {
        let (credential, rest) = split(Some("limit=3&token=a%26b&afterId=x+y"));
        assert_eq!((credential.as_deref(), rest.as_str()), (Some("token=a%26b"), "limit=3&afterId=x+y"));
        assert_eq!(read::<Page>(&rest).ok(), Some(Page { limit: Some(3), after_id: Some("x y".to_owned()) }));
        assert_eq!(split(Option::None), (Option::None, String::new()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |query| read::<Page>(query).unwrap_err();
        assert_eq!(refused("colour=blue"), Refusal::UnknownParameter("colour".to_owned()));
        for (query, at) in [("limit=-1", "limit"), ("limit=", "limit"), ("limit=1&limit=2", "limit")] {
            let refusal = refused(query);
            assert!(
                matches!(&refusal, Refusal::BadParameter { name, .. } if name == at),
                "{query}: {refusal:?}"
            );
        }
    }
}
