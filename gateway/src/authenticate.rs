//! Credential → [`Principal`]. A key that was seen before costs no I/O; that it was not revoked since is for the hold to
//! say, which asks the ledger anyway. What no hold follows on asks the ledger here.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use billing::{Account, Billing, Principal};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request};

use crate::host::Host;
use crate::query::Query;
use crate::refusal::Refusal;
use crate::serve::Gateway;
use crate::token::{self, BadToken, Claims, Purpose};

/// Names of headers that carry a key as they are: ours, and those that users of other services have in their code.
const KEY_HEADERS: [&str; 4] = ["x-api-key", "x-bb-api-key", "steel-api-key", "anchor-api-key"];

/// What every key begins with; tells which half of Basic credentials is the key.
const KEY_PREFIX: &str = "ufb_";

/// What a client shows where both are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A key, for everything that is its account's.
    Key(Principal),
    /// A token, for one session.
    Token(Claims),
}

impl Identity {
    #[must_use]
    pub fn who(&self) -> &Principal {
        match self {
            Self::Key(who) | Self::Token(Claims { who, .. }) => who,
        }
    }
}

/// Finds the key and whose it is. Headers win over the query, that over the host's name.
///
/// # Errors
///
/// [`Refusal::NoCredential`], [`Refusal::BadCredential`], [`Refusal::LedgerAway`].
pub async fn authenticate(
    billing: &Billing,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Principal, Refusal> {
    let credential = credential(headers, query).ok_or(Refusal::NoCredential)?;
    by_key(billing, &credential).await
}

/// The same for a key or a token, and the account as it is now: a key that was revoked meanwhile, wherever, is refused.
/// Costs one read of the store.
///
/// # Errors
///
/// Those of [`authenticate`], and [`Refusal::ExpiredToken`].
pub async fn identify(
    gateway: &Gateway,
    headers: &HeaderMap,
    query: &Query,
) -> Result<(Identity, Account), Refusal> {
    let credential = credential(headers, query).ok_or(Refusal::NoCredential)?;
    let identity = if credential.starts_with(token::PREFIX) {
        Identity::Token(by_token(gateway, &credential)?)
    } else {
        Identity::Key(by_key(&gateway.billing, &credential).await?)
    };
    let account = live_key(gateway, identity.who()).await?;
    Ok((identity, account))
}

/// [`authenticate`], for what is not followed by a hold: a key that was revoked meanwhile, wherever, is refused. Costs one
/// read of the store.
///
/// # Errors
///
/// Those of [`authenticate`].
pub async fn authenticate_now(
    gateway: &Gateway,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Principal, Refusal> {
    let who = authenticate(&gateway.billing, headers, query).await?;
    live_key(gateway, &who).await.map(|_| who)
}

/// Whether what the request shows may be looked up: not if too many keys that its address showed were none. Tokens and keys
/// that were used lately are no guesses, and may: one script with a wrong key does not lock out its colleagues behind the
/// same router.
///
/// # Errors
///
/// [`Refusal::TooManyBadKeys`].
pub fn may_try<B>(gateway: &Gateway, client: IpAddr, request: &Request<B>) -> Result<(), Refusal> {
    gateway.crowd.may_try(client).or_else(|barred| {
        let query = Query::credential_alone(request.uri().query());
        let is_no_guess =
            |shown: &String| shown.starts_with(token::PREFIX) || gateway.billing.remembers(shown);
        credential(request.headers(), &query).filter(is_no_guess).map(drop).ok_or(barred)
    })
}

/// The account as it is now.
async fn live_key(gateway: &Gateway, who: &Principal) -> Result<Account, Refusal> {
    let account = gateway.billing.account(&who.account).await.map_err(|error| {
        tracing::warn!(%error, "an account could not be looked up");
        Refusal::LedgerAway
    })?;
    account.filter(|account| account.has_live_key(&who.key)).ok_or(Refusal::BadCredential)
}

/// What the token in a query says, where a client shows a key as well: some send their headers to whatever URL discovery
/// answered them.
#[must_use]
pub fn token_beside(gateway: &Gateway, key: &Principal, query: &Query) -> Option<Claims> {
    let claims = by_token(gateway, query.credential()?).ok()?;
    (claims.who.account == key.account).then_some(claims)
}

fn by_token(gateway: &Gateway, token: &str) -> Result<Claims, Refusal> {
    let verified = gateway.tokens.verify(token, gateway.clock.now());
    still_good(verified, |claims| {
        let live = gateway.sessions.find(&claims.who.account, &claims.session.id);
        live.is_some_and(|live| live.client().is_some())
    })
}

/// A token that has expired is still good for a session that has sockets: there are clients that open all of theirs, at
/// any time, by the URL of the first.
fn still_good(
    verified: Result<Claims, BadToken>,
    is_connected: impl FnOnce(&Claims) -> bool,
) -> Result<Claims, Refusal> {
    match verified {
        Ok(claims) => Ok(claims),
        Err(BadToken::Expired(claims)) if is_connected(&claims) => {
            Ok(Claims { purpose: Purpose::Attach, ..*claims })
        }
        Err(BadToken::Expired(_)) => Err(Refusal::ExpiredToken),
        Err(BadToken::Forged) => Err(Refusal::BadCredential),
    }
}

async fn by_key(billing: &Billing, credential: &str) -> Result<Principal, Refusal> {
    match billing.authenticate(credential).await {
        Ok(Some(principal)) => Ok(principal),
        Ok(None) => Err(Refusal::BadCredential),
        Err(error) => {
            tracing::warn!(%error, "a key could not be looked up");
            Err(Refusal::LedgerAway)
        }
    }
}

/// The credential that a request shows, whosever it is.
#[must_use]
pub fn credential(headers: &HeaderMap, query: &Query) -> Option<String> {
    from_headers(headers)
        .or_else(|| query.credential().map(str::to_owned))
        .or_else(|| Host::of(headers)?.into_key())
}

fn from_headers(headers: &HeaderMap) -> Option<String> {
    let authorization = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = |name: &&str| Some(headers.get(*name)?.to_str().ok()?.trim().to_owned());
    authorization.and_then(from_authorization).or_else(|| KEY_HEADERS.iter().find_map(key))
}

/// RFC 6750 and RFC 7617. The scheme's name is in any case.
fn from_authorization(value: &str) -> Option<String> {
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
    let (user, password) = pair.split_once(':')?;
    let key = if password.starts_with(KEY_PREFIX) { password } else { user };
    Some(key.to_owned())
}

#[cfg(test)]
mod tests {
    use billing::{NewSession, SessionId, SessionRequest, Timestamp};
    use http::StatusCode;
    use http_body_util::BodyExt;

    use super::*;
    use crate::token::LIFETIME;

    #[tokio::test]
    async fn a_token_that_has_expired() {
        let (gateway, _folder) = Gateway::for_tests().await;
        let (who, now) = (gateway.customer_for_tests().await, gateway.clock.now());
        let lifetime = u64::try_from(LIFETIME.as_millis()).unwrap();
        let token = gateway.tokens.sign(&Claims {
            who: who.clone(),
            session: NewSession::fresh(SessionRequest::default()),
            purpose: Purpose::Start,
            expires: Timestamp::from_millis(now.as_millis() + lifetime),
        });
        let query = Query::parse(Some(&format!("token={token}")), LIFETIME).unwrap();

        let (identity, _) = identify(&gateway, &HeaderMap::new(), &query).await.unwrap();
        assert_eq!(*identity.who(), who);
        gateway.clock.move_on(LIFETIME);
        let refusal = identify(&gateway, &HeaderMap::new(), &query).await.unwrap_err();
        let answer = refusal.into_response();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert!(answer.headers().contains_key("www-authenticate"));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["code"], &body["status"]), (&"expired_token".into(), &401.into()));
        assert!(!body.to_string().contains(&token));
    }

    #[test]
    fn an_expired_token_joins_and_starts_nothing() {
        let claims = Claims {
            who: Principal { account: "acme".parse().unwrap(), key: "k1".parse().unwrap() },
            session: "s1".parse::<SessionId>().unwrap().into(),
            purpose: Purpose::Start,
            expires: Timestamp::from_millis(0),
        };
        let expired = || Err(BadToken::Expired(Box::new(claims.clone())));
        let joins = Claims { purpose: Purpose::Attach, ..claims.clone() };
        assert_eq!(still_good(Ok(claims.clone()), |_| false), Ok(claims.clone()));
        assert_eq!(still_good(expired(), |_| true), Ok(joins));
        assert_eq!(still_good(expired(), |_| false), Err(Refusal::ExpiredToken));
        assert_eq!(still_good(Err(BadToken::Forged), |_| true), Err(Refusal::BadCredential));
    }

    #[test]
    fn forms_of_authorization() {
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        let cases = [
            ("Bearer ufb_1".to_owned(), Some("ufb_1")),
            ("bearer  ufb_1 ".to_owned(), Some("ufb_1")),
            (basic("ufb_1:"), Some("ufb_1")),
            (basic("anything:ufb_1"), Some("ufb_1")),
            (basic("ufb_1:x"), Some("ufb_1")),
            ("Basic !".to_owned(), None),
            ("Digest x".to_owned(), None),
            ("Bearer".to_owned(), None),
        ];
        for (value, key) in cases {
            assert_eq!(from_authorization(&value).as_deref(), key, "{value}");
        }
    }
}
