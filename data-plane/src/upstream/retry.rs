//! How often a request may be sent a second time.

use std::{cell::Cell, time::Duration};

/// How many requests may be sent a second time: 20 % of the requests and 10 a second more.
#[derive(Debug)]
pub struct RetryBudget {
    tokens: Cell<f64>,
    at: Cell<u64>,
}

impl RetryBudget {
    const MOST: f64 = 100.0;

    /// A full one.
    pub fn new(now: u64) -> Self {
        Self { tokens: Cell::new(10.0), at: Cell::new(now) }
    }

    /// A request was sent.
    pub fn earn(&self) {
        self.tokens.set((self.tokens.get() + 0.2).min(Self::MOST));
    }

    /// Whether one may be sent again now.
    pub fn spend(&self, now: u64) -> bool {
        let seconds = Duration::from_nanos(now.saturating_sub(self.at.replace(now))).as_secs_f64();
        let tokens = (self.tokens.get() + 10.0 * seconds).min(Self::MOST);
        self.tokens.set(if tokens >= 1.0 { tokens - 1.0 } else { tokens });
        tokens >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_a_fifth_of_the_requests_and_ten_a_second() {
        let budget = RetryBudget::new(0);
        let spent = |now| (0..1000).take_while(|_| budget.spend(now)).count();
        assert_eq!(spent(0), 10);
        assert_eq!(spent(1_000_000_000), 10);
        (0..100).for_each(|_| budget.earn());
        assert!((19..=21).contains(&spent(1_000_000_000)));
    }
}
