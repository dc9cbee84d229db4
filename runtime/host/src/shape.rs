//! What a component's code may look like before it is compiled: a cost that the compiler pays is looked at first.
//!
//! The compiler's time and memory grow with the code, which `component_bytes_max` bounds. Some shapes cost far more
//! than their size: three kilobytes of loops within loops take minutes, and components that instantiate each other
//! twice at each level never end. No limit here is near what compilers make of ordinary sources. An estimate tells at
//! once, and what is wrong; `compiler.rs` holds what it lets through to limits.

use wasmparser::{
    BinaryReaderError, BlockType, ComponentAlias, ComponentExternalKind, ComponentInstance,
    ComponentOuterAliasKind, ComponentTypeRef, CompositeInnerType, FunctionBody, Instance, Operator, Parser,
    Payload, TypeSectionReader,
};

use crate::PluginError;

/// Functions of all modules together: the compiler takes some six kilobytes of memory for the smallest.
const FUNCTIONS_MAX: u64 = 200_000;
/// Globals of one module. The compiler fails at some 260,000.
const GLOBALS_MAX: u64 = 100_000;
/// Instances that a component is made of, with those of the components within it.
const INSTANCES_MAX: u64 = 2_000;
/// Components and modules within each other. What parses them takes the square of the depth.
const DEPTH_MAX: u64 = 50;
/// Processor time that compiling may take by the estimate, in milliseconds. An interpreter of Python or JavaScript
/// is estimated at 150,000, and takes a fifth of that.
const COMPILE_MS_MAX: u64 = 400_000;
/// The same of one function, which only one processor can work at. The largest of Python's interpreter is at 78,000.
const FUNCTION_MS_MAX: u64 = 150_000;

/// A component under way, or done.
#[derive(Default)]
struct Scope {
    /// Instances that one of it is made of.
    instances: u64,
    /// The same of the components that it names; `None` of those that come from outside, which nobody can tell.
    components: Vec<Option<u64>>,
    /// A core module has no names that matter here.
    is_component: bool,
}

/// Checks a component's shape. Its validity is for the compiler to find out, but what cannot be read is no component.
pub(crate) fn check(bytes: &[u8]) -> Result<(), PluginError> {
    let unreadable = |error: BinaryReaderError| PluginError::compile(error.to_string());
    let (mut functions, mut cost) = (0, Cost::default());
    let mut scopes: Vec<Scope> = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(unreadable)? {
            Payload::Version { encoding, .. } => {
                let is_component = encoding == wasmparser::Encoding::Component;
                cost.types.clear();
                scopes.push(Scope { is_component, ..Scope::default() });
                at_most("the depth of its components within each other is", scopes.len() as u64, DEPTH_MAX)?;
            }
            Payload::End(_) => {
                let ended = scopes.pop();
                if let (Some(ended), Some(outer)) = (ended, scopes.last_mut())
                    && ended.is_component
                {
                    outer.components.push(Some(ended.instances));
                }
            }
            Payload::TypeSection(reader) => {
                cost.add_types(reader).map_err(unreadable)?;
                cost.check()?;
            }
            Payload::GlobalSection(reader) => {
                at_most("its globals number", u64::from(reader.count()), GLOBALS_MAX)?;
            }
            Payload::CodeSectionStart { count, .. } => {
                functions += u64::from(count);
                at_most("its functions number", functions, FUNCTIONS_MAX)?;
            }
            Payload::CodeSectionEntry(body) => {
                let of_function = cost.add_function(&body).map_err(unreadable)? / UNITS_PER_MS;
                let what = "compiling one function is estimated to take milliseconds of processor time:";
                at_most(what, of_function, FUNCTION_MS_MAX)?;
                cost.check()?;
            }
            Payload::InstanceSection(reader) => {
                for instance in reader {
                    if let Instance::Instantiate { .. } = instance.map_err(unreadable)? {
                        add(&mut scopes, 1)?;
                    }
                }
            }
            Payload::ComponentInstanceSection(reader) => {
                for instance in reader {
                    if let ComponentInstance::Instantiate { component_index, .. } = instance.map_err(unreadable)? {
                        let known = scopes.last().and_then(|scope| scope.components.get(component_index as usize));
                        let Some(Some(instances)) = known.copied() else {
                            let text = "it instantiates a component that it does not contain".to_owned();
                            return Err(PluginError::Compile(text));
                        };
                        add(&mut scopes, instances.saturating_add(1))?;
                    }
                }
            }
            Payload::ComponentImportSection(reader) => {
                for import in reader {
                    if let ComponentTypeRef::Component(_) = import.map_err(unreadable)?.ty {
                        name(&mut scopes, None);
                    }
                }
            }
            Payload::ComponentExportSection(reader) => {
                for export in reader {
                    let export = export.map_err(unreadable)?;
                    if export.kind == ComponentExternalKind::Component {
                        let of = scopes.last().and_then(|scope| scope.components.get(export.index as usize));
                        let of = of.copied().flatten();
                        name(&mut scopes, of);
                    }
                }
            }
            Payload::ComponentAliasSection(reader) => {
                for alias in reader {
                    match alias.map_err(unreadable)? {
                        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } => {
                            name(&mut scopes, None);
                        }
                        ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, count, index } => {
                            let outer = scopes.len().checked_sub(count as usize + 1).and_then(|at| scopes.get(at));
                            let of = outer.and_then(|scope| scope.components.get(index as usize));
                            let of = of.copied().flatten();
                            name(&mut scopes, of);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn at_most(what: &'static str, needs: u64, max: u64) -> Result<(), PluginError> {
    if needs > max { Err(PluginError::Shape { what, needs, max }) } else { Ok(()) }
}

fn name(scopes: &mut [Scope], of: Option<u64>) {
    if let Some(scope) = scopes.last_mut() {
        scope.components.push(of);
    }
}

fn add(scopes: &mut [Scope], instances: u64) -> Result<(), PluginError> {
    let Some(scope) = scopes.last_mut() else { return Ok(()) };
    scope.instances = scope.instances.saturating_add(instances);
    at_most("its instances number", scope.instances, INSTANCES_MAX)
}

/// Units of ten nanoseconds, as the terms below were fitted to.
const UNITS_PER_MS: u64 = 100_000;

/// What compiling is estimated to take. The terms were measured, on functions made to be the worst of their kind; on
/// ordinary code the estimate is several times too high, and far below the limit all the same.
#[derive(Default)]
struct Cost {
    units: u64,
    /// Parameters and results of each type of the module under way.
    types: Vec<u64>,
}

impl Cost {
    fn check(&self) -> Result<(), PluginError> {
        let what = "compiling it is estimated to take milliseconds of processor time:";
        at_most(what, self.units / UNITS_PER_MS, COMPILE_MS_MAX)
    }

    fn add(&mut self, terms: &[&[u64]]) {
        for factors in terms {
            let term = factors.iter().fold(1, |product: u64, factor| product.saturating_mul(*factor));
            self.units = self.units.saturating_add(term);
        }
    }

    fn add_types(&mut self, reader: TypeSectionReader<'_>) -> Result<(), BinaryReaderError> {
        for group in reader {
            for ty in group?.types() {
                let values = match &ty.composite_type.inner {
                    CompositeInnerType::Func(ty) => ty.params().len() + ty.results().len(),
                    _ => 0,
                };
                self.types.push(values as u64);
                // Code is made for calls from outside by each type.
                self.add(&[&[50_000]]);
            }
        }
        Ok(())
    }

    /// Adds a function, and tells what is estimated for it.
    fn add_function(&mut self, body: &FunctionBody<'_>) -> Result<u64, BinaryReaderError> {
        let before = self.units;
        let bytes = body.range().len() as u64;
        let mut locals = 0_u64;
        for group in body.get_locals_reader()? {
            locals = locals.saturating_add(u64::from(group?.0));
        }
        // Where code branches or calls through a table; loops, and how deep they lie within each other; variables.
        let (mut branches, mut loops, mut uses, mut deepest) = (0_u64, 0_u64, 0_u64, 0_u64);
        let mut open: Vec<bool> = Vec::new();
        let mut depth: u64 = 0;
        for operator in body.get_operators_reader()? {
            match operator? {
                Operator::Loop { blockty } => {
                    loops += 1;
                    depth += 1;
                    deepest = deepest.max(depth);
                    branches = branches.saturating_add(1 + self.values(blockty));
                    open.push(true);
                }
                Operator::Block { blockty } | Operator::If { blockty } => {
                    branches = branches.saturating_add(1 + self.values(blockty));
                    open.push(false);
                }
                // Of a loop: one that is left.
                Operator::End => depth -= u64::from(open.pop() == Some(true)),
                Operator::BrIf { .. }
                | Operator::BrTable { .. }
                | Operator::CallIndirect { .. }
                | Operator::ReturnCallIndirect { .. }
                | Operator::MemoryFill { .. }
                | Operator::MemoryCopy { .. }
                | Operator::MemoryInit { .. }
                | Operator::TableFill { .. }
                | Operator::TableCopy { .. }
                | Operator::TableInit { .. } => branches += 1,
                Operator::LocalGet { .. } | Operator::LocalSet { .. } | Operator::LocalTee { .. } => uses += 1,
                _ => {}
            }
        }
        // A variable that no instruction names costs nothing, and parameters are variables too.
        let variables = (locals + PARAMETERS_MAX).min(uses);
        self.add(&[
            &[12_000],
            &[450, bytes],
            &[bytes, bytes / 24],
            &[6, branches, branches],
            &[80, variables, loops],
            &[150, variables, deepest, deepest],
        ]);
        Ok(self.units - before)
    }

    /// Values that go through a block.
    fn values(&self, ty: BlockType) -> u64 {
        match ty {
            BlockType::Empty => 0,
            BlockType::Type(_) => 1,
            BlockType::FuncType(index) => self.types.get(index as usize).copied().unwrap_or(0),
        }
    }
}

/// Parameters that a function can have.
const PARAMETERS_MAX: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_counted_through_components_within_components() {
        let check = |text: &str| check(&wat::parse_str(text).unwrap()).map_err(|error| error.to_string());
        let inner = "(component $a (core module $m) (core instance (instantiate $m)))";
        assert_eq!(check(&format!("(component {inner} (instance (instantiate $a)))")), Ok(()));
        let many = "(instance (instantiate $a))".repeat(900);
        assert_eq!(check(&format!("(component {inner} {many})")), Ok(()));
        let outer = format!("(component $b (alias outer 1 $a (component $a)) {many})");
        let error =
            check(&format!("(component {inner} {outer} (instance (instantiate $b)) (instance (instantiate $b)))"));
        assert!(error.unwrap_err().contains("its instances number"));
        let error = check("(component (import \"a\" (component $a)) (instance (instantiate $a)))");
        assert!(error.unwrap_err().contains("does not contain"));
    }
}
