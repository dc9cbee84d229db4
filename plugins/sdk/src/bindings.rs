//! What `wit-bindgen` makes of the contract.
//!
//! A world for each interface that a plugin can export, with the imports of the contract's worlds: a plugin that
//! exports two of them has the union of their worlds, which is the world of the contract. The contract's own worlds
//! cannot be bound side by side, because both export `lifecycle`, and the macros made for it have one name in a
//! crate.

wit_bindgen::generate!({
    path: "../../wit",
    inline: "
        package laneway:sdk;

        world handler {
            import laneway:plugin/log@0.1.0;
            import laneway:plugin/config@0.1.0;
            import laneway:plugin/effects@0.1.0;
            export laneway:plugin/handler@0.1.0;
        }
    ",
    world: "laneway:sdk/handler",
    additional_derives: [PartialEq],
    default_bindings_module: "laneway_sdk::bindings",
    export_macro_name: "export_handler",
    pub_export_macro: true,
    generate_all,
});

/// The publisher's half.
pub mod publishing {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package laneway:sdk;

            world publisher {
                import laneway:plugin/log@0.1.0;
                import laneway:plugin/config@0.1.0;
                export laneway:plugin/publisher@0.1.0;
            }
        ",
        world: "laneway:sdk/publisher",
        additional_derives: [PartialEq],
        default_bindings_module: "laneway_sdk::bindings::publishing",
        export_macro_name: "export_publisher",
        pub_export_macro: true,
        with: {
            "laneway:plugin/types@0.1.0": crate::bindings::laneway::plugin::types,
            "laneway:plugin/log@0.1.0": crate::bindings::laneway::plugin::log,
            "laneway:plugin/config@0.1.0": crate::bindings::laneway::plugin::config,
            "laneway:plugin/publisher@0.1.0": generate,
        },
    });
}

/// What handlers and publishers have in common.
pub mod deploying {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package laneway:sdk;

            world deployed {
                export laneway:plugin/lifecycle@0.1.0;
            }
        ",
        world: "laneway:sdk/deployed",
        default_bindings_module: "laneway_sdk::bindings::deploying",
        export_macro_name: "export_lifecycle",
        pub_export_macro: true,
        generate_all,
    });
}
