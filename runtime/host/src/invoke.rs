//! The path of a message through the sandbox.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use laneway_core::{
    Call, Effects, Failure, Invocation, Invoker, PluginDigest, Reason, SandboxUse, SubscriptionKind,
};

use crate::bindings::laneway::plugin::types;
use crate::instance::{Answer, Job, Live};
use crate::outcome;
use crate::plugin::Plugin;
use crate::secret::Placeholders;
use crate::session::Session;
use crate::wait::{Bounds, Ended};

/// How a call ended, and what it read and wrote.
struct Ran {
    answer: Result<Answer, Failure>,
    effects: Effects,
    /// What came of HTTP requests that failed.
    failed_requests: Option<String>,
    /// Without the time as a whole, which includes what goes before and after.
    used: SandboxUse,
}

impl Ran {
    fn failed(failure: Failure) -> Self {
        Self {
            answer: Err(failure),
            effects: Effects::default(),
            failed_requests: None,
            used: SandboxUse::default(),
        }
    }
}

#[async_trait]
impl Invoker for Plugin {
    fn digest(&self) -> PluginDigest {
        Plugin::digest(self).clone()
    }

    async fn invoke(&self, calls: &[Call]) -> Vec<Invocation> {
        match self.facts.kind {
            SubscriptionKind::Handler => {
                let mut done = Vec::with_capacity(calls.len());
                for call in calls {
                    done.push(self.handle(call).await);
                }
                done
            }
            SubscriptionKind::Publisher => self.publish(calls).await,
        }
    }
}

impl Plugin {
    async fn handle(&self, call: &Call) -> Invocation {
        let began = Instant::now();
        let bounds = Bounds::new(call.attempt.timeout, vec![call.interrupt.clone()]);
        let ran = self.run(Job::Handle(call), bounds).await;
        let placeholders = &self.facts.placeholders;
        let result = match ran.answer {
            Ok(Answer::Handled(handled)) => handled.map_err(|it| outcome::of_guest(it, placeholders)),
            Ok(_) => Err(outcome::of_host(Reason::HOST, "the plugin answered another question")),
            Err(failure) => Err(failure),
        };
        let result = result.map_err(|it| outcome::with_requests(it, ran.failed_requests.as_deref()));
        self.invocation(result, ran.effects, SandboxUse { elapsed: began.elapsed(), ..ran.used })
    }

    async fn publish(&self, calls: &[Call]) -> Vec<Invocation> {
        let Some(shortest) = calls.iter().map(|call| call.attempt.timeout).min() else { return Vec::new() };
        let began = Instant::now();
        let interrupts = calls.iter().map(|call| call.interrupt.clone()).collect();
        let ran = self.run(Job::Publish(calls), Bounds::new(shortest, interrupts)).await;
        let results = match ran.answer {
            Ok(Answer::Published(answer)) => answers(answer, calls.len(), &self.facts.placeholders),
            Ok(_) => {
                let failure = outcome::of_host(Reason::HOST, "the plugin answered another question");
                vec![Err(failure); calls.len()]
            }
            Err(failure) => vec![Err(failure); calls.len()],
        };
        // Each message bears its share, so that sums over messages are right.
        let messages = u32::try_from(calls.len()).unwrap_or(u32::MAX);
        let used = SandboxUse { elapsed: began.elapsed() / messages, guest: ran.used.guest / messages, ..ran.used };
        let failed = ran.failed_requests.as_deref();
        let results = results.into_iter().map(|it| it.map_err(|it| outcome::with_requests(it, failed)));
        results.map(|result| self.invocation(result, Effects::default(), used)).collect()
    }

    fn invocation(&self, result: Result<(), Failure>, effects: Effects, used: SandboxUse) -> Invocation {
        let result = result.map_err(|failure| self.facts.placeholders.hide_in(failure));
        Invocation { result, effects, plugin: self.digest().clone(), used }
    }

    /// Lets the guest check its configuration.
    pub(crate) async fn check_config(&self) -> Result<Result<(), Vec<String>>, Failure> {
        let bounds = Bounds::new(self.facts.limits.validate_timeout, Vec::new());
        match self.run(Job::Validate, bounds).await.answer.map_err(|it| self.facts.placeholders.hide_in(it))? {
            Answer::Validated(answer) => Ok(answer),
            _ => Err(outcome::of_host(Reason::HOST, "the plugin answered another question")),
        }
    }

    /// Runs one call, whatever happens in it.
    async fn run(&self, job: Job<'_>, bounds: Bounds) -> Ran {
        match unwinding(self.run_in_instance(job, bounds)).await {
            Ok(ran) => ran,
            Err(panic) => {
                let (name, digest) = (&self.facts.name, self.digest());
                tracing::error!(subscription = %name, plugin = %digest, panic, "the host panicked while a plugin ran");
                // Whether it has sent something is lost with it.
                let failure = outcome::of_host(Reason::HOST, format!("the host panicked: {panic}"));
                Ran::failed(self.ended(job, failure, true))
            }
        }
    }

    /// The call's future is always awaited to its end: a guest is ended by its epoch, never by dropping it.
    async fn run_in_instance(&self, job: Job<'_>, bounds: Bounds) -> Ran {
        let mut live = match self.live(job, bounds).await {
            Ok(live) => live,
            Err(ended) => return Ran::failed(outcome::of_unbegun(&ended)),
        };
        let _ticks = self.host.ticker.running();
        let mut used = SandboxUse::default();
        loop {
            let was_used = live.is_instantiated();
            let answer = busy(&mut used.guest, live.call(self, job)).await;
            let instantiated = live.is_instantiated();
            let session = live.store.data_mut();
            used.memory_peak_bytes = used.memory_peak_bytes.max(session.meter.memory_bytes() as u64);
            let answer = match answer.map_err(|error| outcome::of_error(&error, session, instantiated)) {
                // Whose fault it is shows in an instance that has nothing of other messages. So far nothing has happened:
                // what the call wrote is dropped, and no request has left.
                Err(failure)
                    if was_used
                        && !session.has_sent()
                        && outcome::may_be_of_earlier_calls(&failure)
                        && session.bounds.check_interrupts().is_ok() =>
                {
                    self.tell_again(session, &failure);
                    let bounds = session.bounds.again();
                    session.finish(false);
                    let permit = live.into_permit();
                    live = Live::new(self, Session::new(self.facts.clone(), job.subject(), bounds), permit);
                    continue;
                }
                answer => answer.map_err(|failure| self.ended(job, failure, session.has_sent())),
            };
            let failed_requests = session.failed_requests();
            let effects = session.finish(answer.as_ref().is_ok_and(Answer::is_success));
            // A guest that trapped is not asked again: nobody knows what state it is in.
            if answer.is_ok() && !matches!(job, Job::Validate) {
                self.keep(live);
            }
            return Ran { answer, effects, failed_requests, used };
        }
    }

    /// Says that a message has its attempt again, in a fresh instance.
    fn tell_again(&self, session: &Session, failure: &Failure) {
        if let Failure::Retry { reason, .. } = failure {
            tracing::info!(
                subscription = %self.facts.name,
                plugin = %self.digest(),
                message = session.message_id(),
                %reason,
                "an instance that had served other messages failed; this one runs again in a fresh instance, uncounted"
            );
        }
    }

    /// A failure of a call that began: one that can reach the outside may have had an effect there.
    fn ended(&self, job: Job<'_>, failure: Failure, has_sent: bool) -> Failure {
        let reaches_out = self.facts.kind == SubscriptionKind::Publisher || self.facts.http.is_some();
        match job {
            Job::Handle(_) | Job::Publish(_) if reaches_out => outcome::maybe_sent(failure, has_sent),
            _ => failure,
        }
    }

    /// An instance for the call. Waiting for one is bounded by the timeout, and is not taken off the call's own time:
    /// that begins when there is an instance.
    async fn live(&self, job: Job<'_>, bounds: Bounds) -> Result<Live, Ended> {
        bounds.check_interrupts()?;
        let idle = if let Job::Validate = job { None } else { self.take_idle() };
        if let Some(mut live) = idle {
            live.store.data_mut().renew(job.subject(), bounds.restarted());
            return Ok(live);
        }
        let permit = self.host.permit(&self.share, &bounds, matches!(job, Job::Validate)).await?;
        let session = Session::new(self.facts.clone(), job.subject(), bounds.restarted());
        Ok(Live::new(self, session, permit))
    }
}

/// One result for each message of a batch.
fn answers(
    answer: Result<Vec<Result<types::Receipt, types::Failure>>, types::Failure>,
    messages: usize,
    placeholders: &Placeholders,
) -> Vec<Result<(), Failure>> {
    let of_guest = |failure| outcome::of_guest(failure, placeholders);
    match answer {
        Ok(results) if results.len() == messages => {
            results.into_iter().map(|result| result.map(drop).map_err(of_guest)).collect()
        }
        Ok(results) => {
            // Some may be out, and there is no telling which.
            let text = format!("the publisher answered for {} of {messages} messages", results.len());
            let failure =
                Failure::UnknownOutcome { reason: Reason::WRONG_ANSWER, error: laneway_core::ErrorText::new(text) };
            vec![Err(failure); messages]
        }
        Err(failure) => vec![Err(of_guest(failure)); messages],
    }
}

/// Awaits a future and adds up the time in which it was at work, rather than waiting.
async fn busy<F: Future>(time: &mut Duration, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let began = Instant::now();
        let polled = future.as_mut().poll(cx);
        *time += began.elapsed();
        polled
    })
    .await
}

/// Awaits a future and catches its panics.
async fn unwinding<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        // The future is not polled again after a panic, and what it held is dropped with it.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Err(payload) => Poll::Ready(Err(outcome::panic_text(&*payload))),
        }
    })
    .await
}
