//! Signed tokens: short-lived credentials for one session, which discovery and the REST API put into the URLs that they
//! answer. A client that follows such a URL need not repeat its key, and many cannot.
//!
//! A token is `ufs_` and base64url of a payload and its HMAC-SHA256, by a key that all gateways of one store share. It is
//! no secret to whoever holds it, and it starts no session once it has expired.
//!
//! The ids of sessions that discovery thinks of are signed as well: chromedriver drops the query of the URL that it is
//! answered, so the id and its key are all that it shows.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use billing::{AccountId, KeyId, NewSession, Principal, SessionId, SessionRequest, SigningKey, Timestamp};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// What every token begins with.
pub const PREFIX: &str = "ufs_";

/// How long a token from discovery is good for: a client connects within milliseconds of its answer, a person who copies a
/// URL within a minute.
pub const LIFETIME: Duration = Duration::from_secs(60);

const TAG_BYTES: usize = 32;

/// Of an id from discovery: random ones, those of the second in which it expires, those of the tag. The tag keeps nobody
/// out who has no key of the account; it tells such an id from one that never was.
const ID_BYTES: [usize; 3] = [8, 4, 8];
/// What is signed for an id begins with this, and a token's payload does not.
const ID_PREFIX: &[u8] = b"id:";

/// What the bearer of a token may do with its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Start it, if nobody has yet; then join it.
    Start,
    /// Attach to it, or join it. It has been started.
    Attach,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Whose session it is, and the key that it came from.
    pub who: Principal,
    /// The session, and what it is to be started with.
    pub session: NewSession,
    pub purpose: Purpose,
    /// From this moment on it starts nothing.
    pub expires: Timestamp,
}

/// Why a token is worth nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadToken {
    /// Nobody here made it.
    Forged,
    /// It was good once, and said this.
    Expired(Box<Claims>),
}

/// [`Claims`] on their way. Short names, since they are part of a URL.
#[derive(Serialize, Deserialize)]
struct Payload {
    a: AccountId,
    k: KeyId,
    s: SessionId,
    p: Purpose,
    e: u64,
    #[serde(default)]
    r: SessionRequest,
}

/// Makes and checks tokens.
#[derive(Clone)]
pub struct Signer(Hmac<Sha256>);

impl fmt::Debug for Signer {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    #[must_use]
    pub fn new(key: &SigningKey) -> Self {
        Self(Hmac::new_from_slice(key.expose()).expect("HMAC takes keys of any length"))
    }

    #[must_use]
    pub fn sign(&self, claims: &Claims) -> String {
        let Claims { who, session, purpose, expires } = claims.clone();
        let payload = Payload {
            a: who.account,
            k: who.key,
            s: session.id,
            p: purpose,
            e: expires.as_millis(),
            r: session.request,
        };
        let mut bytes = serde_json::to_vec(&payload).expect("ids, numbers and texts are JSON");
        let tag = self.0.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&tag);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// What the token says, if it was made here and is good at `now`.
    ///
    /// # Errors
    ///
    /// See [`BadToken`].
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, BadToken> {
        let digits = token.strip_prefix(PREFIX).ok_or(BadToken::Forged)?;
        let bytes = URL_SAFE_NO_PAD.decode(digits).map_err(|_| BadToken::Forged)?;
        let (payload, tag) = bytes.split_last_chunk::<TAG_BYTES>().ok_or(BadToken::Forged)?;
        // In constant time.
        self.0.clone().chain_update(payload).verify_slice(tag).map_err(|_| BadToken::Forged)?;
        let Payload { a, k, s, p, e, r } = serde_json::from_slice(payload).map_err(|_| BadToken::Forged)?;
        let claims = Claims {
            who: Principal { account: a, key: k },
            session: NewSession::named(s, r),
            purpose: p,
            expires: Timestamp::from_millis(e),
        };
        if now.as_millis() >= e {
            return Err(BadToken::Expired(Box::new(claims)));
        }
        Ok(claims)
    }

    /// An id for a session that `account` may start with it until `expires`.
    #[must_use]
    pub fn mint_id(&self, account: &AccountId, expires: Timestamp) -> SessionId {
        let [random, second, _] = ID_BYTES;
        // The beginning of a random id, which is in hexadecimal.
        let mut id = SessionId::random().as_str()[..2 * random].to_owned();
        id += &format!("{:0width$x}", expires.as_millis() / 1000, width = 2 * second);
        id += &self.id_tag(account, &id);
        id.parse().expect("digits are of the alphabet of ids")
    }

    /// Whether discovery thought of this id for `account`, and it may still be used for a start.
    #[must_use]
    pub fn is_minted(&self, account: &AccountId, id: &str, now: Timestamp) -> bool {
        let [random, second, tag] = ID_BYTES.map(|bytes| 2 * bytes);
        if id.len() != random + second + tag || !id.is_ascii() {
            return false;
        }
        let (head, tag) = id.split_at(random + second);
        let expires = u64::from_str_radix(&head[random..], 16).unwrap_or_default();
        // Not in constant time, and need not be: who asks has a key of the account.
        self.id_tag(account, head) == tag && now.as_millis() < expires * 1000
    }

    fn id_tag(&self, account: &AccountId, head: &str) -> String {
        let mac = self.0.clone().chain_update(ID_PREFIX).chain_update(head).chain_update(account.as_str());
        let tag = mac.finalize().into_bytes();
        tag[..ID_BYTES[2]].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use billing::{Billing, Catalogue, Limits, StoreUrl};
    use tempfile::TempDir;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    async fn signer(folder: &TempDir) -> Signer {
        let store = StoreUrl::Sqlite(folder.path().join("ledger.db"));
        let billing = Billing::open(&store, Catalogue::default(), Limits::default()).unwrap();
        Signer::new(&billing.signing_key().await.unwrap())
    }

    fn claims() -> Claims {
        let request = SessionRequest {
            timeout: Some(Duration::from_secs(30)),
            tracking_id: Some("nightly".parse().unwrap()),
            metadata: None,
        };
        Claims {
            who: Principal { account: "acme".parse().unwrap(), key: "k1".parse().unwrap() },
            session: NewSession::named("s1".parse().unwrap(), request),
            purpose: Purpose::Start,
            expires: Timestamp::from_millis(NOW.as_millis() + 60_000),
        }
    }

    fn after(millis: u64) -> Timestamp {
        Timestamp::from_millis(NOW.as_millis() + millis)
    }

    #[tokio::test]
    async fn a_token_says_what_was_signed_until_it_expires() {
        let folder = tempfile::tempdir().unwrap();
        let token = signer(&folder).await.sign(&claims());
        // Another gateway of the same store.
        let other = signer(&folder).await;
        assert_eq!(other.verify(&token, NOW), Ok(claims()));
        assert_eq!(other.verify(&token, after(59_999)), Ok(claims()));
        assert_eq!(other.verify(&token, after(60_000)), Err(BadToken::Expired(Box::new(claims()))));
    }

    #[tokio::test]
    async fn an_id_is_for_one_account_until_it_expires() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (signer_here, other) = (signer(&folder).await, signer(&folder).await);
        let [account, another] = ["acme", "acme2"].map(|id| id.parse().unwrap());
        let id = signer_here.mint_id(&account, after(60_000));
        let id = id.as_str();
        assert!(other.is_minted(&account, id, NOW));
        assert!(other.is_minted(&account, id, after(59_999)));
        assert!(!other.is_minted(&account, id, after(60_000)));
        assert!(!other.is_minted(&another, id, NOW));
        assert!(!signer(&elsewhere).await.is_minted(&account, id, NOW));
        let longer = id.replacen(&id[16..24], "ffffffff", 1);
        for bad in ["", "s1", &id[1..], &longer, &id.to_uppercase(), &"ä".repeat(20)] {
            assert!(!other.is_minted(&account, bad, NOW), "{bad}");
        }
    }

    #[tokio::test]
    async fn no_other_token_is_taken() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let signer_here = signer(&folder).await;
        let token = signer_here.sign(&claims());
        let foreign = signer(&elsewhere).await.sign(&claims());
        let cut = &token[..token.len() - 1];
        for bad in ["", "ufs_", "ufb_abc", &foreign, cut, &format!("{token}A"), "ufs_AAAA", "ufs_!"] {
            assert_eq!(signer_here.verify(bad, NOW), Err(BadToken::Forged), "{bad}");
        }
        // Every byte of it counts, the payload's and the tag's.
        let bytes = URL_SAFE_NO_PAD.decode(&token[PREFIX.len()..]).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let bad = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(changed));
            assert_eq!(signer_here.verify(&bad, NOW), Err(BadToken::Forged), "byte {at}");
        }
    }
}
