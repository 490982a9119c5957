//! The health of one instance, as a pure state machine (DESIGN §5).
//!
//! Here: the states, the thresholds, the step. Not here: clocks, sockets, locks, logs, routes, jitter.

use std::time::Duration;

use tokio::time::Instant;

/// Intervals and thresholds of the probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `health_check_interval`.
    pub interval: Duration,
    /// `health_check_timeout`, at most the interval.
    pub timeout: Duration,
    /// `down_check_interval`.
    pub down_interval: Duration,
    /// `max_consecutive_failures`.
    pub down_after: u32,
    /// `stop_ping_after_failures`, above `down_after`.
    pub park_after: u32,
    /// `forget_parked_after`; `None`: never.
    pub forget_parked_after: Option<Duration>,
}

/// Why values do not make a [`Policy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// An interval, the timeout or a threshold is zero.
    #[error("health check intervals, the timeout and thresholds must be above 0")]
    Zero,
    /// A probe could outlast the interval.
    #[error("health_check_timeout must be at most health_check_interval")]
    TimeoutAboveInterval,
    /// An instance could be parked before it is down.
    #[error("stop_ping_after_failures must be above max_consecutive_failures")]
    ParkedBeforeDown,
}

impl Default for Policy {
    /// The seed's numbers: 30, 5, 120, 3, 10; parked ones are forgotten after a day.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            down_interval: Duration::from_secs(120),
            down_after: 3,
            park_after: 10,
            forget_parked_after: Some(Duration::from_secs(86_400)),
        }
    }
}

impl Policy {
    /// Checks the relations between the values: what [`step`] relies on. Errors: every one that does not hold.
    pub fn new(
        interval: Duration,
        timeout: Duration,
        down_interval: Duration,
        down_after: u32,
        park_after: u32,
        forget_parked_after: Option<Duration>,
    ) -> Result<Self, Vec<PolicyError>> {
        let zero = interval.is_zero() || timeout.is_zero() || down_interval.is_zero() || down_after == 0;
        let broken = [
            (zero, PolicyError::Zero),
            (timeout > interval, PolicyError::TimeoutAboveInterval),
            (park_after <= down_after, PolicyError::ParkedBeforeDown),
        ];
        let faults: Vec<_> = broken.into_iter().filter_map(|(is_broken, fault)| is_broken.then_some(fault)).collect();
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self { interval, timeout, down_interval, down_after, park_after, forget_parked_after })
    }

    /// How often services should repeat their registration: twice the interval, whole seconds, at least 1.
    pub fn renew_after_seconds(&self) -> u32 {
        u32::try_from(self.interval.saturating_mul(2).as_secs()).unwrap_or(u32::MAX).max(1)
    }

    /// From one scheduled probe to the next; `None`: no more.
    pub fn wait(&self, state: State) -> Option<Duration> {
        match state {
            State::Unknown { .. } | State::Up { .. } => Some(self.interval),
            State::Down { .. } => Some(self.down_interval),
            State::Parked { .. } => None,
        }
    }

    fn after_miss(&self, was: State) -> State {
        match was {
            State::Unknown { misses } | State::Up { misses } if misses + 1 >= self.down_after => State::Down { misses: misses + 1 },
            State::Unknown { misses } => State::Unknown { misses: misses + 1 },
            State::Up { misses } => State::Up { misses: misses + 1 },
            State::Down { misses } if misses.saturating_add(1) >= self.park_after => State::Parked { misses: misses.saturating_add(1) },
            State::Down { misses } => State::Down { misses: misses + 1 },
            // Nothing is scheduled any more, so this is a probe from before.
            State::Parked { misses } => State::Parked { misses },
        }
    }
}

/// What the scheduled probes have shown; `misses` are those in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// New: never answered.
    Unknown {
        /// Below `down_after`.
        misses: u32,
    },
    /// Answered the last probe that counted for long enough.
    Up {
        /// Below `down_after`.
        misses: u32,
    },
    /// Its routes are withdrawn.
    Down {
        /// Below `park_after`.
        misses: u32,
    },
    /// Down, and its pings have stopped.
    Parked {
        /// `park_after` or more.
        misses: u32,
    },
}

impl State {
    /// Misses in a row.
    pub fn misses(self) -> u32 {
        match self {
            Self::Unknown { misses } | Self::Up { misses } | Self::Down { misses } | Self::Parked { misses } => misses,
        }
    }
    /// Whether requests may go to it.
    pub fn serves(self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::Up { .. })
    }
    /// Whether it is UP.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Up { .. })
    }
    /// Whether its pings have stopped.
    pub fn is_parked(self) -> bool {
        matches!(self, Self::Parked { .. })
    }
    /// As timelines and events have it: [`State::name`], but PARKED apart.
    pub fn word(self) -> &'static str {
        if self.is_parked() { "PARKED" } else { self.name() }
    }
    /// The state that a word and a count of misses stand for.
    pub fn from_word(word: &str, misses: u32) -> Self {
        match word {
            "UP" => Self::Up { misses },
            "DOWN" => Self::Down { misses },
            "PARKED" => Self::Parked { misses },
            _ => Self::Unknown { misses },
        }
    }
    /// What a state is after furt's own restart (DESIGN §7): UNKNOWN and serving, or still DOWN. Parked ones are woken.
    pub fn restored(down: bool, misses: u32, policy: &Policy) -> Self {
        match down {
            false => Self::Unknown { misses: 0 },
            // Parked ones get the whole series of a service that just went down, as when one is woken.
            true if misses >= policy.park_after => Self::Down { misses: policy.down_after },
            true => Self::Down { misses: misses.max(policy.down_after) },
        }
    }
    /// UP, DOWN or UNKNOWN, as the seed has it; parked is DOWN.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown { .. } => "UNKNOWN",
            Self::Up { .. } => "UP",
            Self::Down { .. } | Self::Parked { .. } => "DOWN",
        }
    }
}

/// One instance's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// What the scheduled probes have shown.
    pub state: State,
    /// Set while something other than a scheduled probe speaks against it.
    pub suspicion: Option<Suspicion>,
}

/// The extra probes asked for by a suspicion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspicion {
    /// Extra probes that were missed since it began.
    pub missed: u32,
}

/// The longest wait between two extra probes.
const LONGEST_EXTRA_WAIT: u64 = 30;

impl Suspicion {
    /// 1, 2, 4 … 30 s.
    fn wait(self) -> Duration {
        Duration::from_secs(1u64.checked_shl(self.missed).unwrap_or(u64::MAX).min(LONGEST_EXTRA_WAIT))
    }
}

impl Default for Health {
    /// New: UNKNOWN, not suspect.
    fn default() -> Self {
        Self { state: State::Unknown { misses: 0 }, suspicion: None }
    }
}

/// What happened to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A scheduled probe was answered with 2xx in time.
    Answered,
    /// A scheduled probe was not.
    Missed,
    /// An extra probe was answered.
    ExtraAnswered,
    /// An extra probe was not; it counts for nothing.
    ExtraMissed,
    /// A data plane could not connect, or a session was lost.
    Suspected,
    /// It registered again, or an operator asked for a probe.
    Woken,
}

/// What follows from a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It serves again.
    Restore,
    /// It serves no longer.
    Withdraw,
    /// The next scheduled probe, in place of the one before.
    ProbeAt(Instant),
    /// The next extra probe, in place of the one before.
    ExtraAt(Instant),
    /// No more probes of either kind.
    Park,
}

/// The one step. `now` is when a probe began (intervals run from probe to probe), or when the rest happened.
pub fn step(policy: &Policy, was: Health, outcome: Outcome, now: Instant) -> (Health, Vec<Effect>) {
    let next = Health { state: next_state(policy, was.state, outcome), suspicion: was.suspicion };
    let next = Health { suspicion: next_suspicion(next, outcome), ..next };
    let mut effects = Vec::new();
    if was.state.serves() != next.state.serves() {
        effects.push(if next.state.serves() { Effect::Restore } else { Effect::Withdraw });
    }
    let counted = matches!(outcome, Outcome::Answered | Outcome::Missed);
    let left_the_down_schedule = outcome == Outcome::ExtraAnswered && !was.state.serves();
    if outcome == Outcome::Woken && was.state.is_parked() {
        effects.push(Effect::ProbeAt(now));
    } else if next.state.is_parked() && !was.state.is_parked() {
        effects.push(Effect::Park);
    } else if counted || left_the_down_schedule {
        effects.extend(policy.wait(next.state).map(|wait| Effect::ProbeAt(now + wait)));
    }
    if next.suspicion != was.suspicion {
        effects.extend(next.suspicion.map(|suspicion| Effect::ExtraAt(now + suspicion.wait())));
    }
    (next, effects)
}

fn next_state(policy: &Policy, was: State, outcome: Outcome) -> State {
    match outcome {
        Outcome::Answered | Outcome::ExtraAnswered => State::Up { misses: 0 },
        Outcome::Missed => policy.after_miss(was),
        // It gets the whole series of a service that just went down: one that registers before it listens needs it.
        Outcome::Woken if was.is_parked() => State::Down { misses: policy.down_after },
        Outcome::ExtraMissed | Outcome::Suspected | Outcome::Woken => was,
    }
}

fn next_suspicion(now: Health, outcome: Outcome) -> Option<Suspicion> {
    match (outcome, now.suspicion) {
        _ if now.state.is_parked() => None,
        (Outcome::Answered | Outcome::ExtraAnswered, _) => None,
        // A second word against it does not start the series again.
        (Outcome::Suspected, None) => Some(Suspicion { missed: 0 }),
        (Outcome::ExtraMissed, Some(suspicion)) => Some(Suspicion { missed: suspicion.missed.saturating_add(1) }),
        (_, unchanged) => unchanged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(outcomes: &[Outcome]) -> Health {
        let now = Instant::now();
        outcomes.iter().fold(Health::default(), |health, outcome| step(&Policy::default(), health, *outcome, now).0)
    }

    #[test]
    fn three_misses_are_down_ten_are_parked_and_an_answer_is_up() {
        let check = |misses: usize, expected: State| assert_eq!(run(&vec![Outcome::Missed; misses]).state, expected);
        check(0, State::Unknown { misses: 0 });
        check(2, State::Unknown { misses: 2 });
        check(3, State::Down { misses: 3 });
        check(9, State::Down { misses: 9 });
        check(10, State::Parked { misses: 10 });
        check(12, State::Parked { misses: 10 });
        use Outcome::{Answered, Missed};
        assert_eq!(run(&[Answered, Missed, Missed]).state, State::Up { misses: 2 });
        assert_eq!(run(&[Answered, Missed, Missed, Missed]).state, State::Down { misses: 3 });
        assert_eq!(run(&[Missed, Missed, Answered, Missed]).state, State::Up { misses: 1 });
        assert_eq!(run(&[Missed, Missed, Missed, Answered]).state, State::Up { misses: 0 });
    }

    #[test]
    fn the_next_probe_is_30_or_120_seconds_later_or_none() {
        let now = Instant::now();
        let check = |state: State, outcome: Outcome, expected: &[Effect]| {
            assert_eq!(step(&Policy::default(), Health { state, suspicion: None }, outcome, now).1, expected, "{state:?} {outcome:?}");
        };
        let after = |seconds| Effect::ProbeAt(now + Duration::from_secs(seconds));
        check(State::Unknown { misses: 0 }, Outcome::Missed, &[after(30)]);
        check(State::Up { misses: 0 }, Outcome::Answered, &[after(30)]);
        check(State::Up { misses: 2 }, Outcome::Missed, &[Effect::Withdraw, after(120)]);
        check(State::Down { misses: 4 }, Outcome::Missed, &[after(120)]);
        check(State::Down { misses: 9 }, Outcome::Missed, &[Effect::Park]);
        check(State::Down { misses: 9 }, Outcome::Answered, &[Effect::Restore, after(30)]);
        check(State::Parked { misses: 10 }, Outcome::Woken, &[after(0)]);
        check(State::Parked { misses: 10 }, Outcome::Suspected, &[]);
        check(State::Down { misses: 5 }, Outcome::Woken, &[]);
        check(State::Down { misses: 5 }, Outcome::ExtraAnswered, &[Effect::Restore, after(30)]);
        check(State::Up { misses: 0 }, Outcome::ExtraAnswered, &[]);
    }

    #[test]
    fn a_suspicion_asks_at_1_2_4_to_30_seconds_and_counts_for_nothing() {
        let policy = Policy::default();
        let now = Instant::now();
        let (mut health, effects) = step(&policy, Health { state: State::Up { misses: 1 }, suspicion: None }, Outcome::Suspected, now);
        assert_eq!(effects, [Effect::ExtraAt(now + Duration::from_secs(1))]);
        assert_eq!(step(&policy, health, Outcome::Suspected, now), (health, vec![]), "again changes nothing");
        let mut waits = Vec::new();
        for _ in 0..40 {
            let (next, effects) = step(&policy, health, Outcome::ExtraMissed, now);
            let [Effect::ExtraAt(at)] = effects[..] else { panic!("{effects:?}") };
            waits.push((at - now).as_secs());
            health = next;
        }
        assert_eq!(waits[..6], [2, 4, 8, 16, 30, 30]);
        assert_eq!(waits[39], 30);
        assert_eq!(health.state, State::Up { misses: 1 });
        assert_eq!(step(&policy, health, Outcome::ExtraAnswered, now).0.suspicion, None);
        let (still, _) = step(&policy, health, Outcome::Missed, now);
        assert!(still.suspicion.is_some(), "a scheduled miss does not clear it");
    }

    #[test]
    fn relations_between_the_values_are_checked() {
        let seconds = Duration::from_secs;
        let check = |interval, timeout, down_after, park_after, expected| {
            let policy = Policy::new(seconds(interval), seconds(timeout), seconds(120), down_after, park_after, None);
            assert_eq!(policy.err().unwrap_or_default(), expected);
        };
        check(30, 5, 3, 10, &[][..]);
        check(30, 30, 1, 2, &[]);
        check(5, 6, 3, 10, &[PolicyError::TimeoutAboveInterval]);
        check(30, 5, 3, 3, &[PolicyError::ParkedBeforeDown]);
        check(5, 6, 3, 3, &[PolicyError::TimeoutAboveInterval, PolicyError::ParkedBeforeDown]);
        check(0, 0, 3, 10, &[PolicyError::Zero]);
        check(30, 5, 0, 10, &[PolicyError::Zero]);
        assert_eq!(Policy::default().renew_after_seconds(), 60);
        assert_eq!(Policy { interval: Duration::from_millis(100), ..Policy::default() }.renew_after_seconds(), 1);
    }

    /// DESIGN §5 as a table: for each state the rows of answer and miss, with the miss count at which
    /// the miss leads elsewhere. It shares nothing with the machine but the thresholds.
    struct Reference {
        state: usize,
        misses: u32,
        suspect: bool,
    }
    const NAMES: [&str; 4] = ["UNKNOWN", "UP", "DOWN", "parked"];
    /// (after an answer, after a miss, after the last miss, which of (down_after, park_after) is the last)
    const TABLE: [(usize, usize, usize, usize); 4] = [(1, 0, 2, 0), (1, 1, 2, 0), (1, 2, 3, 1), (1, 3, 3, 1)];

    impl Reference {
        fn take(&mut self, policy: &Policy, outcome: Outcome) {
            let (answered, missed, out, limit) = TABLE[self.state];
            match outcome {
                Outcome::Answered | Outcome::ExtraAnswered => *self = Self { state: answered, misses: 0, suspect: false },
                Outcome::Missed if self.state == 3 => {}
                Outcome::Missed => {
                    self.misses += 1;
                    self.state = if self.misses == [policy.down_after, policy.park_after][limit] { out } else { missed };
                }
                Outcome::Suspected => self.suspect = true,
                Outcome::Woken if self.state == 3 => (self.state, self.misses) = (2, policy.down_after),
                Outcome::Woken | Outcome::ExtraMissed => {}
            }
            self.suspect &= self.state != 3;
        }
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        use Outcome::{Answered, ExtraAnswered, ExtraMissed, Missed, Suspected, Woken};
        prop_oneof![
            2 => Just(Answered), 12 => Just(Missed), 1 => Just(ExtraAnswered), 2 => Just(ExtraMissed), 2 => Just(Suspected), 1 => Just(Woken)
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_the_table_of_the_contract(
            outcomes in proptest::collection::vec(any_outcome(), 0..120), down_after in 1u32..5, more in 1u32..8,
        ) {
            let policy = Policy { down_after, park_after: down_after + more, ..Policy::default() };
            let now = Instant::now();
            let mut health = Health::default();
            let mut reference = Reference { state: 0, misses: 0, suspect: false };
            for outcome in outcomes {
                let was = health;
                let (next, effects) = step(&policy, health, outcome, now);
                health = next;
                reference.take(&policy, outcome);
                let name = if health.state.is_parked() { "parked" } else { health.state.name() };
                prop_assert_eq!((name, health.state.misses(), health.suspicion.is_some()),
                    (NAMES[reference.state], reference.misses, reference.suspect), "{:?} after {:?}", outcome, was);
                prop_assert_eq!(effects.contains(&Effect::Withdraw), was.state.serves() && reference.state >= 2);
                prop_assert_eq!(effects.contains(&Effect::Restore), !was.state.serves() && reference.state < 2);
                // A counted probe always says what comes next, unless there is nothing to come.
                let says_next = effects.iter().any(|effect| matches!(effect, Effect::ProbeAt(_)));
                if matches!(outcome, Outcome::Answered | Outcome::Missed) {
                    prop_assert_eq!(says_next, reference.state != 3);
                }
            }
        }
    }
}
