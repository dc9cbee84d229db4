//! Which addresses a request may be sent to, looked at when the connection is made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::grant::Reach;

/// What an address is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Public,
    Loopback,
    Private,
    /// Link-local, and where clouds serve credentials to whoever asks.
    Metadata,
    /// Multicast, unspecified, documentation, and what is not assigned.
    Unusable,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Loopback => "a loopback address",
            Self::Private => "a private address",
            Self::Metadata => "a link-local or metadata address",
            Self::Unusable => "not an address of a host",
        }
    }

    /// What an address is, whatever way it is written in.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }

    /// Whether a grant of this reach goes there.
    pub(crate) fn within(self, reach: Reach) -> bool {
        match reach {
            Reach::Public => self == Self::Public,
            Reach::Loopback => self == Self::Loopback,
            Reach::Private => matches!(self, Self::Public | Self::Private | Self::Loopback),
            Reach::Literal => self != Self::Unusable,
        }
    }
}

fn of_v4(address: Ipv4Addr) -> Kind {
    match address.octets() {
        [127, ..] => Kind::Loopback,
        [169, 254, ..] | [100, 100, 100, 200] | [168, 63, 129, 16] => Kind::Metadata,
        [10, ..] | [192, 168, ..] => Kind::Private,
        [172, b, ..] if b & 0xf0 == 16 => Kind::Private,
        // Carrier-grade NAT.
        [100, b, ..] if b & 0xc0 == 64 => Kind::Private,
        // This network, protocol assignments, documentation, 6to4 relays, benchmarks, multicast, reserved,
        // broadcast.
        [0, ..] | [192, 0, 0, _] | [192, 0, 2, _] | [192, 88, 99, _] | [198, 51, 100, _] | [203, 0, 113, _] => {
            Kind::Unusable
        }
        [198, 18 | 19, ..] | [224..=255, ..] => Kind::Unusable,
        _ => Kind::Public,
    }
}

fn of_v6(address: Ipv6Addr) -> Kind {
    let segments = address.segments();
    let v4_in = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        of_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Kind::Unusable,
        [0, 0, 0, 0, 0, 0, 0, 1] => Kind::Loopback,
        // An IPv4 address in IPv6 clothing: mapped, compatible, translated, NAT64, 6to4.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => v4_in(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => v4_in(high, low),
        // Clouds' own: AWS, Google, Oracle, Scaleway, Akamai.
        [0xfd00, 0xa9fe, ..] => Kind::Metadata,
        [0xfd00, 0x0ec2, ..] | [0xfd20, 0x00ce, ..] | [0xfd00, 0x00c1, ..] | [0xfd00, 0x0042, ..] => Kind::Metadata,
        // Link-local.
        [s, ..] if s & 0xffc0 == 0xfe80 => Kind::Metadata,
        // Unique local, site-local, local NAT64.
        [s, ..] if s & 0xfe00 == 0xfc00 || s & 0xffc0 == 0xfec0 => Kind::Private,
        // Which IPv4 address it has, its network decides; the last part is the usual place.
        [0x64, 0xff9b, 1, _, _, _, high, low] if v4_in(high, low) == Kind::Metadata => Kind::Metadata,
        [0x64, 0xff9b, 1, ..] => Kind::Private,
        // Protocol assignments (Teredo, benchmarks, ORCHID), documentation.
        [0x2001, ..=0x01ff | 0x0db8, ..] => Kind::Unusable,
        [0x3fff, second, ..] if second & 0xf000 == 0 => Kind::Unusable,
        // ISATAP: the last part is the IPv4 address of a host that a router of the network tunnels to.
        [s, _, _, _, 0 | 0x0200, 0x5efe, high, low] if s & 0xe000 == 0x2000 => v4_in(high, low),
        // Global unicast is 2000::/3; all else is multicast, discard-only or not assigned.
        [s, ..] if s & 0xe000 == 0x2000 => Kind::Public,
        _ => Kind::Unusable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart_in_every_notation() {
        for (address, kind) in [
            ("1.1.1.1", Kind::Public),
            ("8.8.8.8", Kind::Public),
            ("172.15.0.1", Kind::Public),
            ("172.32.0.1", Kind::Public),
            ("100.63.255.255", Kind::Public),
            ("100.128.0.1", Kind::Public),
            ("127.0.0.1", Kind::Loopback),
            ("127.255.0.9", Kind::Loopback),
            ("10.0.0.1", Kind::Private),
            ("172.16.0.1", Kind::Private),
            ("172.31.255.255", Kind::Private),
            ("192.168.1.1", Kind::Private),
            ("100.64.0.1", Kind::Private),
            ("100.127.255.255", Kind::Private),
            ("169.254.169.254", Kind::Metadata),
            ("169.254.0.1", Kind::Metadata),
            ("100.100.100.200", Kind::Metadata),
            ("168.63.129.16", Kind::Metadata),
            ("0.0.0.0", Kind::Unusable),
            ("0.1.2.3", Kind::Unusable),
            ("224.0.0.1", Kind::Unusable),
            ("255.255.255.255", Kind::Unusable),
            ("198.18.0.1", Kind::Unusable),
            ("240.0.0.1", Kind::Unusable),
            ("2606:4700:4700::1111", Kind::Public),
            ("::1", Kind::Loopback),
            ("::", Kind::Unusable),
            ("::ffff:127.0.0.1", Kind::Loopback),
            ("::ffff:10.0.0.1", Kind::Private),
            ("::ffff:169.254.169.254", Kind::Metadata),
            ("::ffff:1.1.1.1", Kind::Public),
            ("::ffff:0:10.0.0.1", Kind::Private),
            ("::127.0.0.1", Kind::Loopback),
            ("64:ff9b::10.0.0.1", Kind::Private),
            ("64:ff9b::1.1.1.1", Kind::Public),
            ("64:ff9b:1::1", Kind::Private),
            ("64:ff9b:1::a9fe:a9fe", Kind::Metadata),
            ("64:ff9b:1:ffff::10.0.0.1", Kind::Private),
            ("fd00:a9fe:a9fe::1", Kind::Metadata),
            ("2002:7f00:1::", Kind::Loopback),
            ("2002:a9fe:a9fe::", Kind::Metadata),
            ("fe80::1", Kind::Metadata),
            ("febf::1", Kind::Metadata),
            ("fd00:ec2::254", Kind::Metadata),
            ("fd20:ce::254", Kind::Metadata),
            ("fd00:c1::a9fe:a9fe", Kind::Metadata),
            ("fd00:42::42", Kind::Metadata),
            ("64:ff9b::169.254.169.254", Kind::Metadata),
            ("::169.254.169.254", Kind::Metadata),
            ("2001:2::1", Kind::Unusable),
            ("2001:10::1", Kind::Unusable),
            ("3fff::1", Kind::Unusable),
            ("2a00:1450::5efe:10.0.0.1", Kind::Private),
            ("2a00:1450::200:5efe:127.0.0.1", Kind::Loopback),
            ("2001:200::1", Kind::Public),
            ("192.0.0.192", Kind::Unusable),
            ("fc00::1", Kind::Private),
            ("fdff::1", Kind::Private),
            ("fec0::1", Kind::Private),
            ("ff02::1", Kind::Unusable),
            ("2001:db8::1", Kind::Unusable),
            ("2001::1", Kind::Unusable),
            ("100::1", Kind::Unusable),
        ] {
            assert_eq!(Kind::of(address.parse().unwrap()), kind, "{address}");
        }
    }

    #[test]
    fn each_reach_admits_its_kinds() {
        let admitted = |reach| {
            [Kind::Public, Kind::Loopback, Kind::Private, Kind::Metadata, Kind::Unusable]
                .map(|kind| kind.within(reach))
        };
        assert_eq!(admitted(Reach::Public), [true, false, false, false, false]);
        assert_eq!(admitted(Reach::Loopback), [false, true, false, false, false]);
        assert_eq!(admitted(Reach::Private), [true, true, true, false, false]);
        assert_eq!(admitted(Reach::Literal), [true, true, true, true, false]);
    }
}
