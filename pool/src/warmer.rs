//! One loop that keeps the pool warm. Whatever happens to a browser is an event; between two events nothing changes.

mod pace;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use crate::about::About;
use crate::lease::Lease;
use crate::provider::{Browser, Provider, ProviderError, Start};
use crate::queue::{Claim, Next, Queue};
use crate::ready::{Ready, Warm};
use crate::{Settings, Share, Unavailable, health};

use pace::Pace;

#[cfg(test)]
mod tests;

/// How often the pool is counted and its sockets are looked at, whatever the events said.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// A browser that serves has this long to answer its first commands.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a surplus browser may take to end by itself.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// After this many failures in a row the breaker is open: claims are refused at once until a start succeeds.
const BREAKER_AT: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What the warmer hears.
#[derive(Debug)]
pub(crate) enum Event {
    /// A browser was claimed.
    Taken,
    /// A browser was given back and is being destroyed.
    Returned,
    /// A claim found no warm browser and waits.
    Wanted(Claim),
    /// A browser's process ended.
    Exited(Arc<Browser>),
    /// Stop everything.
    Close(oneshot::Sender<()>),
}

#[derive(Debug)]
pub(crate) struct Warmer {
    provider: Provider,
    settings: Settings,
    ready: Arc<Ready>,
    events: mpsc::Sender<Event>,
    about: Arc<About>,
    starting: JoinSet<Result<Warm, ProviderError>>,
    queue: Queue,
    pace: Pace,
    breaker: Breaker,
}

impl Warmer {
    pub(crate) fn open(
        settings: Settings,
        ready: Arc<Ready>,
        events: mpsc::Sender<Event>,
        about: Arc<About>,
    ) -> Result<Self, ProviderError> {
        let provider = Provider::open(&settings.provider, &settings.directory)?;
        let (starting, queue, pace, breaker) = (JoinSet::new(), Queue::new(), Pace::new(), Breaker::new());
        Ok(Self { provider, settings, ready, events, about, starting, queue, pace, breaker })
    }

    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Event>) {
        let mut check = interval(CHECK_EVERY);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.refill();
            self.report();
            let next_deadline = self.queue.next_deadline();
            tokio::select! {
                event = inbox.recv() => match event {
                    Some(Event::Close(done)) => return self.close(inbox, done).await,
                    Some(event) => self.on(event),
                    None => return,
                },
                Some(started) = self.starting.join_next() => match started {
                    Ok(Ok(warm)) => self.arrived(warm),
                    Ok(Err(problem)) => self.failed(&problem),
                    Err(panic) => error!(%panic, "the start of a browser panicked"),
                },
                () = sleep_until(self.breaker.retry_at), if self.breaker.is_pausing() => self.breaker.resume(),
                () = sleep_until(next_deadline.unwrap_or_else(Instant::now)), if next_deadline.is_some() => {
                    self.expire();
                }
                _ = check.tick() => self.check().await,
            }
        }
    }

    fn on(&mut self, event: Event) {
        match event {
            // The refill that follows every event is all there is to do.
            Event::Taken | Event::Returned => {}
            Event::Wanted(claim) => self.wanted(claim),
            Event::Exited(browser) => {
                if browser.claimable.die() {
                    self.ready.forget();
                    self.ready.sweep();
                    warn!("a warm browser died and is replaced");
                }
                metrics::counter!("ufb_pool_browsers_destroyed_total").increment(1);
            }
            Event::Close(_) => unreachable!("handled by the loop, which it ends"),
        }
    }

    fn wanted(&mut self, claim: Claim) {
        // One may have become ready between the claim's look and this event.
        let may_take = claim.share == Share::Small || self.ready.len() > self.settings.reserve();
        if let Some(warm) = may_take.then(|| self.ready.pop()).flatten() {
            return self.hand_over(claim, warm);
        }
        // One claim may be what the next attempt is made for.
        if self.breaker.is_open() && (self.breaker.is_pausing() || !self.starting.is_empty()) {
            return self.refuse_failing(claim);
        }
        if let Some(refused) = self.queue.push(claim) {
            let retry_after = self.wait_for(&refused);
            refuse(refused, Unavailable::QueueFull { retry_after });
        }
    }

    fn hand_over(&mut self, claim: Claim, warm: Warm) {
        // A client that has left meanwhile drops the lease's value here; its browser is given back, not leaked.
        if let Err(Ok(lease)) = claim.reply.send(Ok(Lease::new(warm, self.events.clone()))) {
            lease.release();
        }
    }

    fn expire(&mut self) {
        for claim in self.queue.expire(Instant::now()) {
            let retry_after = self.wait_for(&claim);
            refuse(claim, Unavailable::TimedOut { retry_after });
        }
    }

    /// How long the owner would wait if it came back now.
    fn wait_for(&self, claim: &Claim) -> Duration {
        self.pace.wait_for(self.queue.ahead_of(&claim.owner) + 1, Instant::now())
    }

    fn refuse_failing(&self, claim: Claim) {
        let retry_after = self.breaker.remaining().max(FIRST_PAUSE);
        refuse(claim, Unavailable::Failing { retry_after });
    }

    /// A browser is warm: for whoever has the next turn, or for the queue of the warm ones.
    fn arrived(&mut self, warm: Warm) {
        self.breaker.succeeded();
        metrics::counter!("ufb_pool_browsers_created_total").increment(1);
        self.pace.came(Instant::now());
        self.watch(&warm.browser);
        self.about.note(warm.browser.endpoint.address);
        let reserve_is_short = self.ready.len() < self.settings.reserve();
        match self.queue.next(reserve_is_short) {
            Next::Claim(claim) => {
                // Nobody else knows of this browser yet, so it is always there to be taken. That it died within the
                // moment since it answered is for the session to find out, as at any later moment.
                warm.take();
                self.hand_over(claim, warm);
            }
            Next::Reserve | Next::Nobody => {
                if let Err(surplus) = self.ready.push(warm) {
                    surplus.browser.stop_at_once();
                }
            }
        }
    }

    /// Tells this loop when the browser ends, where its provider knows.
    fn watch(&self, browser: &Arc<Browser>) {
        if browser.exit.has_changed().is_err() {
            // Nobody will ever tell. And who waits for it in vain would hold its slot for a moment too long.
            return;
        }
        let (browser, events) = (Arc::clone(browser), self.events.clone());
        tokio::spawn(async move {
            let ended = browser.exit.clone().wait_for(Option::is_some).await.is_ok();
            if ended {
                // An error means that the pool is gone.
                let _ = events.send(Event::Exited(browser)).await;
            }
        });
    }

    fn failed(&mut self, problem: &ProviderError) {
        metrics::counter!("ufb_pool_failed_starts_total").increment(1);
        self.breaker.failed();
        let pause = self.breaker.pause();
        if !self.breaker.is_open() {
            return warn!(%problem, ?pause, "a browser did not start");
        }
        error!(%problem, ?pause, "browsers fail to start again and again");
        for claim in self.queue.drain() {
            self.refuse_failing(claim);
        }
    }

    /// Starts as many browsers as are missing and may be started.
    fn refill(&mut self) {
        let wanted = self.settings.min_idle + self.queue.len();
        self.pace.note(self.ready.len() < wanted, Instant::now());
        while self.ready.len() + self.starting.len() < wanted
            && self.starting.len() < self.provider.starts_at_a_time()
            && !self.breaker.is_pausing()
        {
            let Some(start) = self.provider.reserve() else { return };
            self.starting.spawn(warm_one(start, self.settings.start_timeout));
        }
    }

    async fn check(&mut self) {
        self.ready.sweep();
        self.queue.forget_void();
        while self.ready.len() > self.settings.max_idle.get() {
            let Some(surplus) = self.ready.pop() else { return };
            debug!("a surplus browser is stopped");
            tokio::spawn(async move { surplus.browser.stop(STOP_GRACE).await });
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float, and these are small")]
    fn report(&self) {
        metrics::gauge!("ufb_pool_idle_browsers").set(self.ready.len() as f64);
        metrics::gauge!("ufb_pool_starting_browsers").set(self.starting.len() as f64);
        metrics::gauge!("ufb_pool_waiting_claims").set(self.queue.len() as f64);
        metrics::gauge!("ufb_pool_breaker_open").set(f64::from(u8::from(self.breaker.is_open())));
    }

    /// Idle browsers are stopped, those that are being started are given up, and those that are given back later end by
    /// their lease.
    async fn close(mut self, inbox: mpsc::Receiver<Event>, done: oneshot::Sender<()>) {
        drop(inbox);
        drop(self.queue.drain());
        self.starting.shutdown().await;
        let mut stopping = JoinSet::new();
        while let Some(warm) = self.ready.pop() {
            stopping.spawn(async move {
                warm.browser.stop_at_once();
                warm.browser.verdict(STOP_GRACE).await
            });
        }
        stopping.join_all().await;
        info!("the pool is closed");
        // Whoever asked may have stopped waiting.
        let _ = done.send(());
    }
}

fn refuse(claim: Claim, why: Unavailable) {
    // A client that has left needs no answer.
    let _ = claim.reply.send(Err(why));
}

async fn warm_one(start: Start, deadline: Duration) -> Result<Warm, ProviderError> {
    let begun = Instant::now();
    let browser = timeout(deadline, start.run()).await.map_err(|_| ProviderError::TimedOut)??;
    let unhealthy = |problem| ProviderError::Unhealthy { address: browser.endpoint.address, problem };
    let answer = match timeout(HEALTH_TIMEOUT, health::warm_up(&browser.endpoint)).await {
        Ok(answer) => answer.map_err(|problem| unhealthy(problem.to_string())),
        Err(_) => Err(unhealthy(format!("no answer within {HEALTH_TIMEOUT:?}"))),
    };
    let socket = answer.inspect_err(|_| {
        metrics::counter!("ufb_pool_failed_health_checks_total").increment(1);
        browser.stop_at_once();
    })?;
    metrics::histogram!("ufb_pool_start_seconds").record(begun.elapsed());
    Ok(Warm { browser: Arc::new(browser), socket })
}

/// Pauses between starts that fail, longer each time.
#[derive(Debug)]
struct Breaker {
    failures: u32,
    retry_at: Instant,
    pausing: bool,
}

impl Breaker {
    fn new() -> Self {
        Self { failures: 0, retry_at: Instant::now(), pausing: false }
    }

    fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.pausing = true;
        self.retry_at = Instant::now() + self.pause();
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.pausing = false;
    }

    fn resume(&mut self) {
        self.pausing = false;
    }

    fn is_pausing(&self) -> bool {
        self.pausing
    }

    fn is_open(&self) -> bool {
        self.failures >= BREAKER_AT
    }

    /// Until the next attempt.
    fn remaining(&self) -> Duration {
        self.retry_at.saturating_duration_since(Instant::now())
    }

    fn pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
    }
}
