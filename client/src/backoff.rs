//! When to try again: pure.
//!
//! Here: how long to wait after the end of a session. Not here: clocks, sleeping, randomness.

use std::time::Duration;

use crate::session::Ended;

/// The ceiling of the first wait: a restart of furt takes about this long.
const FIRST: Duration = Duration::from_millis(200);
/// The ceiling of all further ones. Ten thousand instances then knock two thousand times a second.
const MOST: Duration = Duration::from_secs(10);
/// After a refusal. Only a person mends its reason, in furt.conf or in the service.
const REFUSED: Duration = Duration::from_secs(30);
/// A registration that stood this long was a good one, and what came before it is forgotten.
const STABLE: Duration = Duration::from_secs(5);

/// How often it went wrong since it last went well.
#[derive(Debug, Default)]
pub struct Backoff {
    losses: u32,
}

impl Backoff {
    /// How long to wait after a session ended like this.
    ///
    /// `stood`: how long the registration stood. `draw`: a random number from 0 to 1, so that the clients of one
    /// furt do not come back in step.
    pub fn wait(&mut self, ended: &Ended, stood: Duration, draw: f64) -> Duration {
        if stood >= STABLE {
            self.losses = 0;
        }
        match ended {
            // furt shuts down and is likely on its way back, or another one listens already.
            Ended::Closed(_) if self.losses == 0 && stood >= STABLE => Duration::ZERO,
            Ended::Later { after, .. } => (*after).min(REFUSED) + FIRST.mul_f64(draw),
            Ended::Refused(_) => REFUSED.mul_f64(0.5 + draw / 2.0),
            Ended::Closed(_) | Ended::Lost(_) => self.ceiling().mul_f64(draw),
        }
    }

    /// Doubles with every loss.
    fn ceiling(&mut self) -> Duration {
        let factor = 2_u32.saturating_pow(self.losses);
        self.losses = self.losses.saturating_add(1);
        FIRST.saturating_mul(factor).min(MOST)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    const NEVER: Duration = Duration::ZERO;

    fn lost() -> Ended {
        Ended::Lost("gone".into())
    }

    fn closed() -> Ended {
        Ended::Closed("furt shuts down".into())
    }

    #[test]
    fn losses_double_the_ceiling_up_to_its_bound_and_the_draw_takes_a_share_of_it() {
        let mut backoff = Backoff::default();
        let ceilings: Vec<u128> = (0..8).map(|_| backoff.wait(&lost(), NEVER, 1.0).as_millis()).collect();
        assert_eq!(ceilings, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        assert_eq!(backoff.wait(&lost(), NEVER, 0.25), Duration::from_millis(2_500));
        assert_eq!(backoff.wait(&lost(), NEVER, 0.0), Duration::ZERO);
        backoff.losses = u32::MAX;
        assert_eq!(backoff.wait(&lost(), NEVER, 1.0), MOST);
    }

    #[test]
    fn a_registration_that_stood_forgives_and_one_that_did_not_does_not() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.wait(&lost(), NEVER, 1.0);
        }
        assert_eq!(backoff.wait(&lost(), STABLE - Duration::from_millis(1), 1.0).as_millis(), 6_400);
        assert_eq!(backoff.wait(&lost(), STABLE, 1.0).as_millis(), 200);
    }

    #[test]
    fn a_furt_that_shuts_down_is_asked_again_at_once_but_not_in_a_circle() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.wait(&closed(), STABLE, 1.0), Duration::ZERO);
        let next: Vec<u128> = (0..3).map(|_| backoff.wait(&closed(), NEVER, 1.0).as_millis()).collect();
        assert_eq!(next, [200, 400, 800]);
    }

    #[test]
    fn a_refusal_is_asked_again_slowly_and_a_busy_furt_when_it_says() {
        let mut backoff = Backoff::default();
        let refused = Ended::from(Status::permission_denied("no"));
        assert_eq!(backoff.wait(&refused, NEVER, 0.0), Duration::from_secs(15));
        assert_eq!(backoff.wait(&refused, NEVER, 1.0), Duration::from_secs(30));
        let later = |seconds| Ended::Later { cause: "too often".into(), after: Duration::from_secs(seconds) };
        assert_eq!(backoff.wait(&later(2), NEVER, 0.5), Duration::from_millis(2_100));
        assert_eq!(backoff.wait(&later(u64::MAX), NEVER, 0.0), REFUSED, "whatever it says");
    }
}
