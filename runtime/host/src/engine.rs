//! The engine's settings. `examples/overhead.rs` measures what they are worth.

use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, Strategy};

use crate::host::HostOptions;
use crate::meter::{CORE_INSTANCES_MAX, MEMORIES_MAX, TABLES_MAX};

/// Stack of the guest's own calls.
const WASM_STACK_BYTES: usize = 512 << 10;
/// Stack of a call in all. What the guest's part leaves is for host functions.
const ASYNC_STACK_BYTES: usize = 1 << 20;
/// Memory of a finished instance that is zeroed by hand rather than given back: cheaper than the page faults.
const MEMORY_KEEP_RESIDENT_BYTES: usize = 256 << 10;
const TABLE_KEEP_RESIDENT_BYTES: usize = 64 << 10;
const STACK_KEEP_RESIDENT_BYTES: usize = 64 << 10;
/// Largest table that the pool has room for.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 65_536;

/// Makes the engine, with a pool of so many instances if the machine has the address space for it.
pub(crate) fn new(options: &HostOptions, instances: u32) -> wasmtime::Result<Engine> {
    let mut config = config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(options, instances)));
    match Engine::new(&config) {
        Ok(engine) => Ok(engine),
        Err(error) => {
            tracing::warn!(
                instances,
                error = format!("{error:#}"),
                "no pool of instances, most likely for want of address space; making an instance will take longer"
            );
            config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
            Engine::new(&config)
        }
    }
}

/// Makes an engine that only compiles. What it makes runs on those of [`new`].
pub(crate) fn compiling() -> wasmtime::Result<Engine> {
    Engine::new(&config())
}

fn config() -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .consume_fuel(false)
        .concurrency_support(false)
        .memory_init_cow(true)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(ASYNC_STACK_BYTES);
    config
}

fn pool(options: &HostOptions, instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_stacks(instances)
        // As many as all of them could take: one plugin's instances must not leave another's without a memory.
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_MAX as u32))
        .total_memories(instances.saturating_mul(MEMORIES_MAX as u32))
        .total_tables(instances.saturating_mul(TABLES_MAX as u32))
        .max_core_instances_per_component(CORE_INSTANCES_MAX as u32)
        .max_memories_per_component(MEMORIES_MAX as u32)
        .max_memories_per_module(MEMORIES_MAX as u32)
        .max_tables_per_component(TABLES_MAX as u32)
        .max_tables_per_module(TABLES_MAX as u32)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(options.memory_bytes_max)
        .max_component_instance_size(4 << 20)
        .max_core_instance_size(4 << 20)
        .linear_memory_keep_resident(MEMORY_KEEP_RESIDENT_BYTES)
        .table_keep_resident(TABLE_KEEP_RESIDENT_BYTES)
        .async_stack_keep_resident(STACK_KEEP_RESIDENT_BYTES)
        // Suspected to mishandle pages that were swapped out.
        .pagemap_scan(Enabled::No);
    pool
}
