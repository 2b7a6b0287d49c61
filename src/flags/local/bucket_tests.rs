//! Buckets against numbers that another implementation has given, Python's `hashlib`:
//! `int(hashlib.sha1(f"{key}.{id}{salt}".encode()).hexdigest()[:15], 16)`, the salt being "" or "variant".

use super::*;

/// Key, id, whether it is of the variants, digits.
const VECTORS: &[(&str, &str, bool, u64)] = &[
    ("beta-feature", "distinct_id", false, 0xe02_7150_eee6_0115),
    ("beta-feature", "distinct_id", true, 0x3a7_20bf_a0d6_d711),
    ("multivariate-flag", "user_1", false, 0x393_e5b6_3464_2ed2),
    ("multivariate-flag", "user_1", true, 0xb1b_20fe_cf94_b2e3),
    ("simple-flag", "distinct_id_0", false, 0xc8a_0536_2b9f_414f),
    ("simple-flag", "distinct_id_1", false, 0x56f_7099_7ddf_6067),
    ("new-ui", "user-123", false, 0x6c1_3817_d3ad_390c),
    ("new-ui", "user-123", true, 0xcb6_2ab3_9e67_2561),
    ("checkout", "user@example.com", false, 0xab5_bbad_6195_04d1),
    ("company-beta", "acme", false, 0x69d_71cc_59ef_a2fa),
    ("a", "", false, 0x246_791d_ceeb_2859),
    ("neue-oberfl\u{e4}che", "j\u{fc}rgen", false, 0xb50_2555_44cc_5ab9),
    ("\u{65d7}", "\u{5229}\u{7528}\u{8005}", false, 0x5a0_15b2_b7dd_0990),
    ("\u{65d7}", "\u{5229}\u{7528}\u{8005}", true, 0x0da_94cd_74c9_3f89),
    ("flag", "\u{1f980}", false, 0x4ed_76c6_66fa_94b7),
    ("flag", "0190b2f0-7b1c-7c3e-9d4a-2f6e8a1b3c5d", false, 0xf0f_a982_8e8d_2671),
    ("flag.with.dots", "id.with.dots", false, 0x38e_ea84_f521_3a17),
    ("f", "42", false, 0x605_b016_3661_6618),
];

/// `hashlib.sha1(f"holdout-{id}".encode())`.
const HOLDOUTS: &[(&str, u64)] = &[
    ("user_1", 0x5be_dc75_9164_6b96),
    ("acme", 0xed4_dede_49a8_577b),
    ("\u{5229}\u{7528}\u{8005}", 0x14d_24ca_d1d4_c2c9),
];

fn share(digits: u64) -> f64 {
    digits as f64 / 1_152_921_504_606_846_975_u64 as f64
}

#[test]
fn buckets_are_those_of_every_other_library() {
    for &(key, id, is_of_variants, digits) in VECTORS {
        let bucket = if is_of_variants { of_variants(key, id) } else { of_rollout(key, id) };
        assert_eq!(bucket.to_bits(), share(digits).to_bits(), "{key:?} {id:?}");
    }
    for &(id, digits) in HOLDOUTS {
        assert_eq!(of_holdout(id).to_bits(), share(digits).to_bits(), "{id:?}");
    }
}

#[test]
fn ids_longer_than_a_block_of_the_hash_are_hashed_to_their_end() {
    assert_eq!(of_rollout("k", &"x".repeat(60)), share(0x269_703b_bef5_ae40));
    assert_eq!(of_variants("k", &"x".repeat(200)), share(0x0b4_9738_a7d9_1946));
}

#[test]
fn one_block_and_many_are_the_same_hash_up_to_the_last_text_that_fits() {
    for len in 0..=130 {
        let id = "x".repeat(len);
        let one = of_one_block(&["k", ".", &id, "variant"]);
        assert_eq!(one.is_some(), len + 9 < LENGTH, "{len}");
        assert!(one.is_none_or(|one| one == of_any_length(&["k", ".", &id, "variant"])), "{len}");
    }
}
