//! What one address and one key may take of what is there for all: connections, attempts with keys that are none, starts.
//!
//! An address is a stranger's, so what is remembered of addresses is bounded, and IPv6 addresses count by their /64, which
//! is what one customer of a provider has. Rates are counted by GCRA: so many at once, then as many as a minute gives back.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Instant;

use billing::KeyId;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use governor::clock::Clock;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::refusal::Refusal;

/// Addresses that are remembered for keys that were none. Beyond it new ones go unnoticed until old ones are forgotten:
/// so many at once are not one that tries.
const ADDRESSES: usize = 65_536;

/// The settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections of one address at a time.
    pub connections_per_address: NonZeroU32,
    /// Attempts of one address with keys that are none.
    pub bad_keys_per_minute: NonZeroU32,
    /// Sessions that one key may start.
    pub starts_per_minute: NonZeroU32,
}

/// Who comes in, by address and by key.
#[derive(Debug)]
pub struct Crowd {
    most: u32,
    inside: DashMap<Origin, u32>,
    bad_keys: DefaultKeyedRateLimiter<Origin>,
    /// Addresses that showed too many, and until when they are not listened to.
    barred: DashMap<Origin, Instant>,
    starts: DefaultKeyedRateLimiter<KeyId>,
}

impl Crowd {
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            most: bounds.connections_per_address.get(),
            inside: DashMap::new(),
            bad_keys: RateLimiter::dashmap(Quota::per_minute(bounds.bad_keys_per_minute)),
            barred: DashMap::new(),
            starts: RateLimiter::dashmap(Quota::per_minute(bounds.starts_per_minute)),
        }
    }

    /// One whose bounds are all the same.
    #[cfg(test)]
    pub(crate) fn for_tests(bound: NonZeroU32) -> Self {
        Self::new(Bounds {
            connections_per_address: bound,
            bad_keys_per_minute: bound,
            starts_per_minute: bound,
        })
    }

    /// A connection's place, unless its address has as many as it may.
    #[must_use]
    pub fn enter(&self, address: IpAddr) -> Option<Guest<'_>> {
        let origin = Origin::of(address);
        let mut inside = self.inside.entry(origin).or_insert(0);
        if *inside >= self.most {
            metrics::counter!("ufb_gateway_turned_away_connections_total").increment(1);
            return None;
        }
        *inside += 1;
        Some(Guest { crowd: self, origin })
    }

    /// Connections at this moment.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inside.iter().map(|inside| *inside as usize).sum()
    }

    /// Whether keys of that address are looked up.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooManyBadKeys`].
    pub fn may_try(&self, address: IpAddr) -> Result<(), Refusal> {
        let Some(until) = self.barred.get(&Origin::of(address)).map(|until| *until) else { return Ok(()) };
        let retry_after = until.saturating_duration_since(Instant::now());
        if retry_after.is_zero() { Ok(()) } else { Err(Refusal::TooManyBadKeys { retry_after }) }
    }

    /// A key that was shown from that address is none.
    pub fn note_bad_key(&self, address: IpAddr) {
        let origin = Origin::of(address);
        if self.bad_keys.len() >= ADDRESSES {
            return;
        }
        if let Err(full) = self.bad_keys.check_key(&origin) {
            let wait = full.wait_time_from(self.bad_keys.clock().now());
            self.barred.insert(origin, Instant::now() + wait);
        }
    }

    /// One more session of that key.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooManyStarts`].
    pub fn may_start(&self, key: &KeyId) -> Result<(), Refusal> {
        self.starts.check_key(key).map_err(|full| Refusal::TooManyStarts {
            retry_after: full.wait_time_from(self.starts.clock().now()),
        })
    }

    /// Forgets who has done nothing for as long as matters. Called every few seconds.
    pub fn forget(&self) {
        self.bad_keys.retain_recent();
        self.starts.retain_recent();
        let now = Instant::now();
        self.barred.retain(|_, until| *until > now);
    }
}

/// A connection of some address, until it is dropped.
#[derive(Debug)]
pub struct Guest<'a> {
    crowd: &'a Crowd,
    origin: Origin,
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let Entry::Occupied(mut inside) = self.crowd.inside.entry(self.origin) else { return };
        *inside.get_mut() -= 1;
        if *inside.get() == 0 {
            inside.remove();
        }
    }
}

/// What counts as one address: an IPv4 address, or the first half of an IPv6 one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Origin(u128);

impl Origin {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.to_ipv6_mapped().to_bits()),
            IpAddr::V6(address) => Self(address.to_bits() & !u128::from(u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn crowd() -> Crowd {
        Crowd::for_tests(NonZeroU32::new(3).unwrap())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_so_many_connections() {
        let crowd = crowd();
        let one = address("10.0.0.1");
        let mut guests: Vec<_> = (0..3).map(|_| crowd.enter(one).unwrap()).collect();
        assert!(crowd.enter(one).is_none());
        assert!(crowd.enter(address("::ffff:10.0.0.1")).is_none(), "the same, written otherwise");
        let other = crowd.enter(address("10.0.0.2"));
        assert!(other.is_some());

        guests.pop();
        guests.push(crowd.enter(one).unwrap());
        drop((guests, other));
        assert!(crowd.inside.is_empty(), "nothing is kept of who left");
    }

    #[test]
    fn half_an_ipv6_address_is_one() {
        assert_eq!(Origin::of(address("2001:db8::1")), Origin::of(address("2001:db8::ffff:2")));
        assert_ne!(Origin::of(address("2001:db8::1")), Origin::of(address("2001:db8:0:1::1")));
    }

    #[test]
    fn who_shows_too_many_bad_keys_is_not_listened_to() {
        let crowd = crowd();
        let (bad, good) = (address("10.0.0.1"), address("10.0.0.2"));
        for _ in 0..3 {
            crowd.note_bad_key(bad);
            assert_eq!(crowd.may_try(bad), Ok(()));
        }
        crowd.note_bad_key(bad);
        let Err(Refusal::TooManyBadKeys { retry_after }) = crowd.may_try(bad) else { panic!("it may") };
        assert!(retry_after <= Duration::from_secs(20), "a third of a minute gives one back");
        assert_eq!(crowd.may_try(good), Ok(()));
        crowd.forget();
        assert!(crowd.may_try(bad).is_err(), "too early to forget");
    }

    #[test]
    fn a_key_starts_so_many() {
        let crowd = crowd();
        let [one, other] = ["one", "other"].map(|key| key.parse::<KeyId>().unwrap());
        for _ in 0..3 {
            assert_eq!(crowd.may_start(&one), Ok(()));
        }
        assert!(matches!(crowd.may_start(&one), Err(Refusal::TooManyStarts { .. })));
        assert_eq!(crowd.may_start(&other), Ok(()));
    }
}
