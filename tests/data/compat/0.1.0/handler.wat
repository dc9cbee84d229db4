;; A handler of laneway:plugin@0.1.0 that calls each function of the contract once.
;;
;; The number of the attempt says how it ends: 1 in success, 2 to 6 in the five cases of `failure`.
(module
    (import "laneway:plugin/log@0.1.0" "log" (func $log (param i32 i32 i32 i32 i32)))
    (import "laneway:plugin/config@0.1.0" "get" (func $config (param i32 i32 i32)))
    (import "laneway:plugin/effects@0.1.0" "get" (func $get (param i32 i32 i32)))
    (import "laneway:plugin/effects@0.1.0" "put" (func $put (param i32 i32 i32 i32)))
    (import "laneway:plugin/effects@0.1.0" "delete" (func $delete (param i32 i32)))
    (import "laneway:plugin/effects@0.1.0" "add" (func $add (param i32 i32 i64)))
    (import "laneway:plugin/effects@0.1.0" "count" (func $count (param i32 i32) (result i64)))
    (import "laneway:plugin/effects@0.1.0" "emit" (func $emit (param
        i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i64 i32)))
    (import "laneway:plugin/effects@0.1.0" "annotate" (func $annotate (param i32 i32 i32)))

    (memory (export "memory") 2)
    (data (i32.const 16) "gone")
    (data (i32.const 32) "handled")
    (data (i32.const 48) "compat.done")
    (data (i32.const 64) "{\"contract\":\"0.1.0\"}")
    (data (i32.const 96) "contract")
    (data (i32.const 112) "0.1.0")
    (data (i32.const 128) "url")
    (data (i32.const 144) "`url` is missing")
    (data (i32.const 176) "E42")
    (data (i32.const 192) "as asked for")
    (data (i32.const 208) "text/plain")

    ;; Addresses from 65536 are given out and never taken back, except after each call.
    (global $heap (mut i32) (i32.const 65536))
    (func (export "cabi_realloc") (param i32 i32) (param $align i32) (param $size i32) (result i32)
        (local $at i32)
        (local.set $at (i32.and
            (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
            (i32.sub (i32.const 0) (local.get $align))))
        (global.set $heap (i32.add (local.get $at) (local.get $size)))
        (local.get $at))

    ;; One error if the configuration has no `url`.
    (func (export "laneway:plugin/lifecycle@0.1.0#validate") (result i32)
        (call $config (i32.const 128) (i32.const 3) (i32.const 512))
        (if (i32.load8_u (i32.const 512)) (then (return (i32.const 1024))))
        (i32.store8 (i32.const 2048) (i32.const 1))
        (i32.store (i32.const 2052) (i32.const 2064))
        (i32.store (i32.const 2056) (i32.const 1))
        (i32.store (i32.const 2064) (i32.const 144))
        (i32.store (i32.const 2068) (i32.const 16))
        (i32.const 2048))

    (func (export "laneway:plugin/handler@0.1.0#handle") (param $message i32) (result i32)
        (local $number i32)
        (local.set $number (i32.load offset=72 (local.get $message)))
        (if (i32.ne (local.get $number) (i32.const 1)) (then (return (call $fail (local.get $number)))))

        ;; What is under the message's id is not there yet; its body is put there.
        (call $get (i32.load offset=0 (local.get $message)) (i32.load offset=4 (local.get $message)) (i32.const 512))
        (if (i32.load8_u (i32.const 512)) (then unreachable))
        (call $put
            (i32.load offset=0 (local.get $message)) (i32.load offset=4 (local.get $message))
            (i32.load offset=60 (local.get $message)) (i32.load offset=64 (local.get $message)))
        (call $delete (i32.const 16) (i32.const 4))
        ;; As much as the counter has.
        (call $add (i32.const 32) (i32.const 7) (call $count (i32.const 32) (i32.const 7)))

        ;; The message's body with its key, one header, and a second's delay.
        (i32.store (i32.const 528) (i32.const 96))
        (i32.store (i32.const 532) (i32.const 8))
        (i32.store (i32.const 536) (i32.const 112))
        (i32.store (i32.const 540) (i32.const 5))
        (call $emit
            (i32.const 48) (i32.const 11)
            (i32.load8_u offset=16 (local.get $message))
            (i32.load offset=20 (local.get $message)) (i32.load offset=24 (local.get $message))
            (i32.const 1) (i32.const 7)
            (i32.const 1) (i32.const 208) (i32.const 10)
            (i32.const 528) (i32.const 1)
            (i32.load offset=60 (local.get $message)) (i32.load offset=64 (local.get $message))
            (i32.const 1) (i64.const 1000)
            (i32.const 544))
        (if (i32.load8_u (i32.const 544)) (then unreachable))
        (call $annotate (i32.const 64) (i32.const 20) (i32.const 576))
        (if (i32.load8_u (i32.const 576)) (then unreachable))
        (call $log (i32.const 2) (i32.const 48) (i32.const 11) (i32.const 528) (i32.const 1))
        (i32.const 1024))
    (func (export "cabi_post_laneway:plugin/handler@0.1.0#handle") (param i32)
        (global.set $heap (i32.const 65536)))

    ;; The failure whose case is two less than the number.
    (func $fail (param $number i32) (result i32)
        (i32.store8 (i32.const 2048) (i32.const 1))
        (i32.store8 (i32.const 2056) (i32.sub (local.get $number) (i32.const 2)))
        (if (i32.eq (local.get $number) (i32.const 3))
            (then
                (i32.store8 (i32.const 2064) (i32.const 1))
                (i64.store (i32.const 2072) (i64.const 1500))
                (i32.store (i32.const 2080) (i32.const 192))
                (i32.store (i32.const 2084) (i32.const 12)))
            (else
                (i32.store (i32.const 2064) (i32.const 176))
                (i32.store (i32.const 2068) (i32.const 3))
                (i32.store (i32.const 2072) (i32.const 192))
                (i32.store (i32.const 2076) (i32.const 12))))
        (i32.const 2048)))
