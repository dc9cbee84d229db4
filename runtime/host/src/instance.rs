//! A live instance: its store, and what is called in it.

use std::time::Duration;

use async_trait::async_trait;
use laneway_core::{Call, Lane, Message};
use wasmtime::component::Instance;
use wasmtime::{CallHook, CallHookHandler, Store, StoreContextMut, UpdateDeadline};

use crate::bindings::exports::laneway::plugin::handler::Guest as Handler;
use crate::bindings::exports::laneway::plugin::publisher::{Guest as Publisher, Item};
use crate::bindings::laneway::plugin::types;
use crate::compiled::Work;
use crate::plugin::Plugin;
use crate::pool::Permit;
use crate::session::{Held, Session, Subject};

/// What is to be called.
#[derive(Clone, Copy)]
pub(crate) enum Job<'a> {
    Handle(&'a Call),
    Publish(&'a [Call]),
    Validate,
}

impl Job<'_> {
    pub(crate) fn subject(&self) -> Option<Subject> {
        match self {
            Self::Handle(call) => Some(Subject { message: call.message.clone(), state: call.state.clone() }),
            Self::Publish(_) | Self::Validate => None,
        }
    }
}

/// What the guest answered.
pub(crate) enum Answer {
    Handled(Result<(), types::Failure>),
    Published(Result<Vec<Result<types::Receipt, types::Failure>>, types::Failure>),
    Validated(Result<(), Vec<String>>),
}

impl Answer {
    /// Whether the effects of the attempt hold.
    pub(crate) fn is_success(&self) -> bool {
        matches!(self, Self::Handled(Ok(())) | Self::Published(Ok(_)) | Self::Validated(Ok(())))
    }
}

/// An instance and its store.
pub(crate) struct Live {
    pub(crate) store: Store<Session>,
    guest: Option<Guest>,
    /// Calls so far.
    pub(crate) served: u32,
    /// What the first one left behind.
    after_first: Option<Held>,
    pub(crate) permit: Permit,
}

enum Guest {
    Handler(Handler),
    Publisher(Publisher),
}

impl Live {
    /// A store with its limits, and nothing in it yet.
    pub(crate) fn new(plugin: &Plugin, session: Session, permit: Permit) -> Self {
        let limits = &plugin.facts.limits;
        let (output_bytes_max, resources_max) = (limits.output_bytes_max, limits.resources_max);
        let mut store = Store::new(&plugin.host.engine, session);
        store.limiter(|session| &mut session.meter);
        store.set_hostcall_fuel(output_bytes_max);
        store.set_max_component_handles(resources_max);
        store.epoch_deadline_callback(on_tick);
        store.call_hook_async(OnCall);
        Self { store, guest: None, served: 0, after_first: None, permit }
    }

    pub(crate) fn is_instantiated(&self) -> bool {
        self.guest.is_some()
    }

    /// Whether there is room for another message beside what the calls so far have left behind.
    pub(crate) fn has_room(&mut self) -> bool {
        let session = self.store.data_mut();
        let held = session.held();
        held.leaves_room(*self.after_first.get_or_insert(held), &session.facts.limits)
    }

    /// Takes the instance down, and leaves its place to another.
    pub(crate) fn into_permit(self) -> Permit {
        let Self { store, permit, .. } = self;
        drop(store);
        permit
    }

    /// Makes the instance, if that is not done yet, and calls it.
    pub(crate) async fn call(&mut self, plugin: &Plugin, job: Job<'_>) -> wasmtime::Result<Answer> {
        self.served += 1;
        self.store.set_epoch_deadline(1);
        let guest = match &mut self.guest {
            Some(guest) => guest,
            none => {
                let instance = plugin.linked.instances.instantiate_async(&mut self.store).await?;
                let guest = none.insert(load(&mut self.store, plugin, &instance)?);
                if let Job::Validate = job {
                    let lifecycle = plugin.linked.lifecycle.load(&mut self.store, &instance)?;
                    return Ok(Answer::Validated(lifecycle.call_validate(&mut self.store).await?));
                }
                guest
            }
        };
        // What is left once the instance is made. A batch has the time of its shortest attempt.
        let left = self.store.data().bounds.left();
        match (guest, job) {
            (Guest::Handler(guest), Job::Handle(call)) => {
                let headers = headers(&call.message);
                let message = message(&call.message, &headers);
                Ok(Answer::Handled(guest.call_handle(&mut self.store, message, attempt(call, left)).await?))
            }
            (Guest::Publisher(guest), Job::Publish(calls)) => {
                let headers: Vec<_> = calls.iter().map(|call| headers(&call.message)).collect();
                let batch: Vec<Item<'_>> = calls
                    .iter()
                    .zip(&headers)
                    .map(|(call, headers)| Item {
                        message: message(&call.message, headers),
                        attempt: attempt(call, left),
                    })
                    .collect();
                Ok(Answer::Published(guest.call_publish(&mut self.store, &batch).await?))
            }
            _ => Err(wasmtime::format_err!("the plugin has no such export")),
        }
    }
}

fn load(store: &mut Store<Session>, plugin: &Plugin, instance: &Instance) -> wasmtime::Result<Guest> {
    Ok(match &plugin.linked.work {
        Work::Handler(exports) => Guest::Handler(exports.load(store, instance)?),
        Work::Publisher(exports) => Guest::Publisher(exports.load(store, instance)?),
    })
}

/// Each tick: end the guest if its time is over, else let other tasks of this thread have their turn.
fn on_tick(mut store: StoreContextMut<'_, Session>) -> wasmtime::Result<UpdateDeadline> {
    let bounds = &mut store.data_mut().bounds;
    bounds.check()?;
    bounds.end_turn();
    // Tokio's own way to yield: the runtime looks at timers and sockets before the guest goes on.
    Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
}

/// Each call of the host does what a tick does. Code that neither loops nor calls a function of its own never meets a
/// tick, and its calls of the host may take long.
struct OnCall;

#[async_trait]
impl CallHookHandler<Session> for OnCall {
    async fn handle_call_event(
        &self,
        mut store: StoreContextMut<'_, Session>,
        hook: CallHook,
    ) -> wasmtime::Result<()> {
        if let CallHook::CallingHost = hook
            && store.data_mut().bounds.has_turn_ended()?
        {
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

fn headers(message: &Message) -> Vec<types::Header<'_>> {
    message.headers.iter().map(|header| types::Header { name: &header.name, value: &header.value }).collect()
}

/// A view of the message; its texts and body are copied once, into the guest.
fn message<'a>(message: &'a Message, headers: &'a [types::Header<'a>]) -> types::Message<'a> {
    types::Message {
        id: message.id.as_str(),
        topic: message.topic.as_str(),
        key: message.key.as_deref(),
        content_type: &message.content_type,
        headers,
        tenant: message.tenant.as_deref(),
        priority: message.priority.0,
        body: &message.payload,
    }
}

fn attempt(call: &Call, left: Duration) -> types::Attempt {
    types::Attempt {
        number: call.attempt.number,
        max: call.attempt.max,
        lane: match call.attempt.lane {
            Lane::Primary => types::Lane::Primary,
            Lane::Backfill => types::Lane::Backfill,
        },
        deadline_ms: left.as_millis().try_into().unwrap_or(u64::MAX),
        maybe_duplicate: call.attempt.maybe_duplicate,
    }
}
