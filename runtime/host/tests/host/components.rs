//! A component that many subscriptions run is held once.

use std::sync::{Arc, Barrier};
use std::thread;

use laneway_core::{Name, SubscriptionKind};
use laneway_host::{Compiled, Grants, Host, HostOptions, Plugin, PluginSpec};

use crate::guest::{EFFECTS, Guest, OK};
use crate::support::{call, denied, run, spec};

/// Subscriptions that run one component.
const MANY: usize = 50;

fn host() -> Arc<Host> {
    Host::new(HostOptions { instances_max: 4, ..HostOptions::default() }).unwrap()
}

/// Writes to its state.
fn writing() -> Vec<u8> {
    let work = format!("(call $put (i32.const 16) (i32.const 3) (i32.const 32) (i32.const 5)) {OK}");
    Guest::handler(&work).fields(EFFECTS).fields(r#"(data (i32.const 16) "key")"#).build()
}

/// A subscription of the component. Every other one may not write to its state.
fn plugin(host: &Arc<Host>, bytes: &[u8], number: usize) -> Arc<Plugin> {
    let name = Name::parse(&format!("s{number}")).unwrap();
    let grants = Grants { state: number.is_multiple_of(2), ..Grants::default() };
    host.plugin(bytes, PluginSpec { name, grants, ..spec(SubscriptionKind::Handler) }).unwrap()
}

#[tokio::test]
async fn a_component_is_compiled_once_for_all_who_run_it_each_by_its_own_grants() {
    let (host, bytes) = (host(), writing());
    let plugins: Vec<Arc<Plugin>> = (0..MANY).map(|number| plugin(&host, &bytes, number)).collect();
    assert!(plugins.iter().all(|plugin| Arc::ptr_eq(plugin.component(), plugins[0].component())));
    for (number, plugin) in plugins.iter().enumerate() {
        let done = run(plugin, call()).await;
        match number.is_multiple_of(2) {
            true => assert_eq!(done.result, Ok(())),
            false => assert!(denied(&done).contains(&format!("subscription `s{number}`: grants.state = true"))),
        }
    }
    let other = plugin(&host, &Guest::handler(OK).build(), MANY);
    assert!(!Arc::ptr_eq(other.component(), plugins[0].component()));
}

#[tokio::test]
async fn a_component_that_nobody_runs_any_more_is_let_go() {
    let (host, bytes) = (host(), writing());
    let plugins: Vec<Arc<Plugin>> = (0..2).map(|number| plugin(&host, &bytes, number)).collect();
    let held = Arc::downgrade(plugins[0].component());
    let [first, second] = plugins.try_into().unwrap();
    drop(first);
    assert!(held.upgrade().is_some(), "one goes on");
    run(&second, call()).await;
    drop(second);
    assert!(held.upgrade().is_none());
    run(&plugin(&host, &bytes, 0), call()).await.result.unwrap();
}

#[test]
fn of_those_who_come_at_once_all_get_the_same_component() {
    let (host, bytes) = (host(), writing());
    let together = Barrier::new(8);
    let all: Vec<Arc<Compiled>> = thread::scope(|scope| {
        let come = || {
            together.wait();
            host.component(&bytes).unwrap()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(come)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(all.iter().all(|component| Arc::ptr_eq(component, &all[0])));
}
