//! Bindings of the plugin contract (`wit/laneway.wit`).
//!
//! One world for the bindings alone: it exports what handlers export and what publishers export, so that both share
//! one set of types. No component is of this world; each kind looks up the exports that it needs.

wasmtime::component::bindgen!({
    path: "../../wit",
    inline: "
        package laneway:host;
        world any-plugin {
            import laneway:plugin/log@0.1.0;
            import laneway:plugin/config@0.1.0;
            import laneway:plugin/effects@0.1.0;
            export laneway:plugin/lifecycle@0.1.0;
            export laneway:plugin/handler@0.1.0;
            export laneway:plugin/publisher@0.1.0;
        }
    ",
    world: "laneway:host/any-plugin",
    ownership: Borrowing { duplicate_if_necessary: true },
    imports: {
        "laneway:plugin/effects.get": async | trappable,
        "laneway:plugin/effects.count": async | trappable,
        default: trappable,
    },
    exports: { default: async },
});
