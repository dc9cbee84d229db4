//! The priority of messages that name none, by scope.

use std::cell::RefCell;

use laneway_core::Priority;

tokio::task_local! {
    /// The priority, and how many scopes of the thread stood around it when it began.
    static OF_TASK: (Priority, usize);
}

thread_local! {
    static OF_THREAD: RefCell<Vec<Priority>> = const { RefCell::new(Vec::new()) };
}

/// Runs a future in which messages that name no priority get this one. Scopes nest, the innermost wins, and one ends
/// with its future, however that ends: by its return, by a panic, or by being dropped.
///
/// A task spawned inside is outside: it has scopes of its own.
pub async fn with_priority<F: Future>(priority: Priority, future: F) -> F::Output {
    let depth = OF_THREAD.with_borrow(Vec::len);
    OF_TASK.scope((priority, depth), future).await
}

/// The same for code that does not await.
pub fn with_priority_sync<T>(priority: Priority, run: impl FnOnce() -> T) -> T {
    /// Leaves the scope when dropped, by a panic too.
    struct Scope;
    impl Drop for Scope {
        fn drop(&mut self) {
            OF_THREAD.with_borrow_mut(Vec::pop);
        }
    }
    OF_THREAD.with_borrow_mut(|scopes| scopes.push(priority));
    let _scope = Scope;
    run()
}

/// The priority that a message gets here if it names none: the innermost scope's, or [`Priority::NORMAL`].
#[must_use]
pub fn current_priority() -> Priority {
    let (of_task, depth) = OF_TASK.try_with(|&(priority, depth)| (Some(priority), depth)).unwrap_or((None, 0));
    // A scope of the thread that began within the task's is further in.
    let of_thread = OF_THREAD.with_borrow(|scopes| scopes.get(depth..).and_then(|inner| inner.last().copied()));
    of_thread.or(of_task).unwrap_or(Priority::NORMAL)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[tokio::test]
    async fn the_innermost_scope_wins_and_ends_with_its_future() {
        assert_eq!(current_priority(), Priority::NORMAL);
        with_priority(Priority::LOW, async {
            assert_eq!(current_priority(), Priority::LOW);
            with_priority(Priority::CRITICAL, async {
                tokio::task::yield_now().await;
                assert_eq!(current_priority(), Priority::CRITICAL);
                assert_eq!(with_priority_sync(Priority::BULK, current_priority), Priority::BULK);
                assert_eq!(current_priority(), Priority::CRITICAL);
            })
            .await;
            assert_eq!(current_priority(), Priority::LOW);
        })
        .await;
        assert_eq!(current_priority(), Priority::NORMAL);
    }

    #[test]
    fn a_panic_restores_the_scope_around() {
        with_priority_sync(Priority::HIGH, || {
            let panicked =
                catch_unwind(AssertUnwindSafe(|| with_priority_sync(Priority::LOW, || panic!("as planned"))));
            assert!(panicked.is_err());
            assert_eq!(current_priority(), Priority::HIGH);
        });
        assert_eq!(current_priority(), Priority::NORMAL);
    }

    #[tokio::test]
    async fn a_cancelled_future_takes_its_scope_with_it() {
        with_priority(Priority::HIGH, async {
            let waiting = with_priority(Priority::LOW, std::future::pending::<()>());
            let cancelled = tokio::time::timeout(std::time::Duration::from_millis(5), waiting).await;
            assert!(cancelled.is_err());
            assert_eq!(current_priority(), Priority::HIGH);
        })
        .await;
    }

    #[tokio::test]
    async fn a_spawned_task_has_scopes_of_its_own() {
        let inside =
            with_priority(Priority::HIGH, async { tokio::spawn(async { current_priority() }).await }).await;
        assert_eq!(inside.unwrap(), Priority::NORMAL);
    }
}
