//! API keys: shown once, stored as a hash, revocable at once.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::audit::Digest;
use crate::id::{AccountId, KeyId};
use crate::time::Timestamp;

const PREFIX: &str = "ufb_";
/// RFC 4648's, in lower case: host names know no case, and a key may be a part of one.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Digits that 256 bits take in base 32. With the prefix a key is shorter than the 63 bytes of a DNS label.
const DIGITS: usize = 52;

/// The longest label of a key, in bytes.
pub const LABEL_MAX: usize = 100;

/// An API key as its account keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Its name, which is no secret.
    pub id: KeyId,
    /// SHA-256 of the key. Its 256 random bits need no salt and no slow hash.
    pub hash: Digest,
    /// What its owner calls it.
    pub label: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
}

impl Key {
    /// A new key and its secret, which is kept nowhere else.
    pub(crate) fn mint(label: String, now: Timestamp) -> (Key, Secret) {
        let secret = Secret::random();
        let hash = secret.hash();
        (Key { id: KeyId::random(), hash, label, created_at: now, revoked_at: None }, secret)
    }
}

/// An API key in the clear: `ufb_` and 52 characters, 256 random bits in lower-case base 32.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    fn random() -> Secret {
        Secret(format!("{PREFIX}{}", base32(&random())))
    }

    /// What a client presents, where it has the shape of a key.
    pub(crate) fn parse(presented: &str) -> Option<Secret> {
        let digits = presented.strip_prefix(PREFIX)?;
        let valid = digits.len() == DIGITS && digits.bytes().all(|byte| ALPHABET.contains(&byte));
        valid.then(|| Secret(presented.to_owned()))
    }

    pub(crate) fn hash(&self) -> Digest {
        Digest(Sha256::digest(&self.0).into())
    }

    /// The key itself, to be shown to its owner once and to nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(ufb_***)")
    }
}

/// What the gateways of one store sign their tokens with: 256 random bits.
#[derive(Clone)]
pub struct SigningKey(pub(crate) [u8; 32]);

impl SigningKey {
    /// The bits, for whoever signs.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(***)")
    }
}

/// Who a client is: the account, and the key it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The account.
    pub account: AccountId,
    /// The key.
    pub key: KeyId,
}

/// Random bytes from the operating system, which gives them whenever it runs at all.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

/// RFC 4648 without padding.
pub(crate) fn base32(bytes: &[u8; 32]) -> String {
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| usize::from(byte >> (7 - at % 8) & 1));
    let digit = |at: usize| (0..5).fold(0, |value, offset| value << 1 | bit(at * 5 + offset));
    (0..DIGITS).map(|at| char::from(ALPHABET[digit(at)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `base64.b32encode` of Python says so.
    #[test]
    fn digits_are_those_of_rfc_4648() {
        let counting = std::array::from_fn(|at| at as u8);
        assert_eq!(base32(&counting), "aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypq");
        assert_eq!(base32(&[0xff; 32]), format!("{}q", "7".repeat(51)));
    }

    #[test]
    fn a_secret_parses_back_and_never_shows() {
        let (key, secret) = Key::mint("ci".to_owned(), Timestamp::from_millis(0));
        assert_eq!(Secret::parse(secret.expose()).unwrap().hash(), key.hash);
        assert!(!format!("{secret:?} {key:?}").contains(secret.expose()));
        for presented in [
            "",
            "ufb_",
            "ufb_short",
            &secret.expose()[4..],
            &secret.expose().to_uppercase(),
            &format!("{}x", secret.expose()),
        ] {
            assert!(Secret::parse(presented).is_none(), "{presented}");
        }
    }
}
