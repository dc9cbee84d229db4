;; A publisher of laneway:plugin@0.1.0: accepts what comes at its first attempt with a receipt, and rejects the rest.
(module
    (import "laneway:plugin/log@0.1.0" "log" (func $log (param i32 i32 i32 i32 i32)))
    (import "laneway:plugin/config@0.1.0" "get" (func $config (param i32 i32 i32)))

    (memory (export "memory") 2)
    (data (i32.const 16) "url")
    (data (i32.const 32) "r-1")
    (data (i32.const 48) "E42")
    (data (i32.const 64) "as asked for")

    ;; Addresses from 65536 are given out and never taken back, except after each call.
    (global $heap (mut i32) (i32.const 65536))
    (func (export "cabi_realloc") (param i32 i32) (param $align i32) (param $size i32) (result i32)
        (local $at i32)
        (local.set $at (i32.and
            (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
            (i32.sub (i32.const 0) (local.get $align))))
        (global.set $heap (i32.add (local.get $at) (local.get $size)))
        (local.get $at))

    (func (export "laneway:plugin/lifecycle@0.1.0#validate") (result i32) (i32.const 1024))

    ;; An item takes 104 bytes, its attempt's number at 72; an answer takes 40, from 4096.
    (func (export "laneway:plugin/publisher@0.1.0#publish") (param $batch i32) (param $length i32) (result i32)
        (local $i i32) (local $answer i32)
        (call $config (i32.const 16) (i32.const 3) (i32.const 512))
        (call $log (i32.const 1) (i32.const 32) (i32.const 3) (i32.const 0) (i32.const 0))
        (block $done
            (loop $next
                (br_if $done (i32.ge_u (local.get $i) (local.get $length)))
                (local.set $answer (i32.add (i32.const 4096) (i32.mul (local.get $i) (i32.const 40))))
                (if (i32.eq (i32.load offset=72 (local.get $batch)) (i32.const 1))
                    (then
                        (i32.store8 (local.get $answer) (i32.const 0))
                        (i32.store8 offset=8 (local.get $answer) (i32.const 1))
                        (i32.store offset=12 (local.get $answer) (i32.const 32))
                        (i32.store offset=16 (local.get $answer) (i32.const 3)))
                    (else
                        (i32.store8 (local.get $answer) (i32.const 1))
                        (i32.store8 offset=8 (local.get $answer) (i32.const 2))
                        (i32.store offset=16 (local.get $answer) (i32.const 48))
                        (i32.store offset=20 (local.get $answer) (i32.const 3))
                        (i32.store offset=24 (local.get $answer) (i32.const 64))
                        (i32.store offset=28 (local.get $answer) (i32.const 12))))
                (local.set $batch (i32.add (local.get $batch) (i32.const 104)))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br $next)))
        (i32.store (i32.const 1032) (i32.const 4096))
        (i32.store (i32.const 1036) (local.get $length))
        (i32.const 1024))
    (func (export "cabi_post_laneway:plugin/publisher@0.1.0#publish") (param i32)
        (global.set $heap (i32.const 65536))))
