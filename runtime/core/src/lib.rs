//! The domain of Laneway: its types, and the traits that the other crates implement.
//!
//! Nothing here performs input or output: no database, no WebAssembly engine, no clock, no async runtime. Values are
//! parsed once, at the edge; what holds a [`Topic`] or a [`Priority`] holds a valid one.

mod cron;
mod delivery;
mod effects;
mod failure;
mod health;
mod id;
mod invoke;
mod lane;
mod maintenance;
mod marker;
mod message;
mod node;
mod plugin;
mod retry;
mod schedule;
mod settle;
mod store;
mod topic;
mod topology;
mod view;

pub use self::cron::{CronExpression, CronField, InvalidCron};
pub use delivery::{Batch, ClaimRequest, Delivery, Held, Renewal};
pub use effects::{CounterAdd, Effects, StateEntry, StateError, StateRead, StateVersion, StateView, StateWrite};
pub use failure::{ERROR_TEXT_BYTES_MAX, ErrorText, Failure, Reason};
pub use health::{Finding, Health, Trouble};
pub use id::{DeliveryId, InvalidName, LeaseToken, MessageId, Name, PluginDigest, SubscriptionId};
pub use invoke::{Attempt, Call, Interrupt, Invocation, Invoker, SandboxUse};
pub use lane::{Lane, Priority};
pub use maintenance::{
    Arrears, Change, Cleanup, DeadLetterAction, DeadLetterSelection, Kept, Maintenance, Replay, Replayable, Step,
    Writes,
};
pub use marker::{InvalidMetadata, MARKER_METADATA_BYTES_MAX, MarkerMetadata};
pub use message::{
    CONTENT_TYPE_BYTES_MAX, CONTENT_TYPE_JSON, DELAY_MAX, Enqueued, HEADERS_BYTES_MAX, Header,
    MESSAGE_KEY_BYTES_MAX, Message, NewMessage,
};
pub use node::Node;
pub use plugin::{
    Canary, CanaryBy, Deployment, DeploymentState, Figures, FirstAttempts, InvalidPluginVersion, LoadError,
    NewDeployment, NewPlugin, NodeReport, NodeReportView, OpenPlugin, PluginLoader, PluginVersion, PluginView,
    Plugins, Readiness, StoredPlugin,
};
pub use retry::{InvalidRetry, RetryDecision, RetryPolicy, RetrySchedule};
pub use schedule::{
    CleanupPolicy, Declared, Missed, RunOutcome, Schedule, ScheduleAction, SchedulePosition, ScheduleRunView,
    ScheduleRuns,
};
pub use settle::{KeyChange, SettleReport, Settlement, StateChanges, StateConflict, Verdict, state_changes};
pub use store::{Store, StoreError};
pub use topic::{InvalidPattern, InvalidTopic, Segment, Topic, TopicPattern};
pub use topology::{
    AppliedTopology, BreakerPolicy, Ordering, Subscription, SubscriptionKind, THROTTLE_MAX_DEFAULT, Topology,
};
pub use view::{
    COUNTED_MAX, DeadLetterFilter, DeadLetterView, DeliveryView, LaneStatus, MarkerView, MessageFilter,
    MessageStatus, MessageView, NodeStatus, Status, SubscriptionStatus,
};
