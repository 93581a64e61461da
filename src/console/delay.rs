//! How long the answer to a wrong token is kept back, by the client's address.
//!
//! It grows with every wrong one and is bounded. Only the wrong answer waits: a right token is taken at once, from
//! every address, so nobody can lock anybody out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The first wait; doubled with each further wrong token.
const FIRST: Duration = Duration::from_millis(100);

/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(2);

/// An address that was quiet for so long begins anew.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Addresses remembered.
const ADDRESSES_MAX: usize = 1_024;

/// Wrong tokens by address.
#[derive(Default)]
pub struct Delays(Mutex<HashMap<IpAddr, (u32, Instant)>>);

impl Delays {
    /// Counts a wrong token from `address`; how long its answer waits.
    pub fn wrong(&self, address: IpAddr) -> Duration {
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (_, last)| now.duration_since(*last) < FORGOTTEN);
        let address = client(address);
        if all.len() >= ADDRESSES_MAX && !all.contains_key(&address) {
            return LONGEST;
        }
        let (count, last) = all.entry(address).or_insert((0, now));
        *last = now;
        let wait = FIRST.saturating_mul(1_u32.checked_shl(*count).unwrap_or(u32::MAX)).min(LONGEST);
        *count = count.saturating_add(1).min(31);
        wait
    }
}

/// One client has a whole /64 of IPv6.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_its_bound_for_each_client_alone() {
        let delays = Delays::default();
        let one: IpAddr = "fd00::1".parse().unwrap();
        let waits: Vec<_> = (0..40).map(|_| delays.wrong(one)).collect();
        assert_eq!(waits[0], FIRST);
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(waits[39], LONGEST);
        assert_eq!(delays.wrong("fd00::2".parse().unwrap()), LONGEST, "the same /64");
        assert_eq!(delays.wrong("fd00:1::1".parse().unwrap()), FIRST);
        assert_eq!(delays.wrong("::ffff:10.0.0.1".parse().unwrap()), FIRST);
        assert_eq!(delays.wrong("10.0.0.2".parse().unwrap()), FIRST);
    }

    #[test]
    fn memory_is_bounded() {
        let delays = Delays::default();
        for n in 0..2 * ADDRESSES_MAX as u128 {
            delays.wrong(IpAddr::V6((n << 64).into()));
        }
        assert_eq!(delays.0.lock().unwrap().len(), ADDRESSES_MAX);
    }
}
