use super::*;

fn entry(n: u64) -> AuditEntry {
    let at = i64::try_from(n).unwrap();
    let fields = vec![("what".into(), "approve".into()), ("by".into(), format!("person-{n}"))];
    AuditEntry { id: format!("{n}-0"), at, fields }
}

fn key() -> SealKey {
    SealKey::new(&[7; 32]).unwrap()
}

/// Ten entries under four links, and one that is not sealed yet.
fn sealed() -> (Vec<AuditEntry>, Vec<Seal>) {
    let entries: Vec<_> = (1..=11).map(entry).collect();
    let mut seals: Vec<Seal> = Vec::new();
    for range in [0..3, 3..4, 4..8, 8..10] {
        seals.push(Seal::over(&key(), seals.last(), &entries[range]).unwrap());
    }
    (entries, seals)
}

fn verify(entries: &[AuditEntry], seals: &[Seal], kept: u64, exported: Option<&Seal>) -> Verified {
    let key = key();
    let mut verifier = Verifier::new(&key, seals.to_vec(), kept);
    entries.iter().for_each(|entry| verifier.read(entry));
    verifier.finish(exported)
}

#[test]
fn what_is_as_it_was_sealed_has_no_fault() {
    let (entries, seals) = sealed();
    let verified = verify(&entries, &seals, KEPT, seals.get(2));
    assert_eq!((verified.sealed, verified.unsealed, verified.seals), (10, 1, 4));
    assert_eq!(verified.faults, [""; 0]);
    assert_eq!(verify(&entries, &[], KEPT, None).faults, [""; 0]);
    assert_eq!(Seal::over(&key(), None, &[]), None);
}

#[test]
fn any_entry_that_is_altered_removed_or_inserted_is_found() {
    let (entries, seals) = sealed();
    for n in 0..10 {
        let found = |change: &dyn Fn(&mut Vec<AuditEntry>)| {
            let mut changed = entries.clone();
            change(&mut changed);
            assert_ne!(verify(&changed, &seals, KEPT, None).faults, [""; 0], "entry {n}");
        };
        found(&|it| it[n].fields[1].1.push('x'));
        found(&|it| it[n].fields[0] = ("wha".into(), "tapprove".into()));
        found(&|it| drop(it.remove(n)));
        found(&|it| drop(it.drain(..=n)));
        found(&|it| drop(it.drain(n..)));
        found(&|it| it.insert(n, AuditEntry { id: format!("{n}-5"), ..entry(99) }));
    }
    let mut swapped = entries.clone();
    (swapped[5].fields, swapped[6].fields) = (entry(7).fields, entry(6).fields);
    assert_ne!(verify(&swapped, &seals, KEPT, None).faults, [""; 0]);
    assert_ne!(verify(&[], &seals, KEPT, None).faults, [""; 0]);
}

#[test]
fn a_link_that_is_altered_or_removed_is_found() {
    let (entries, seals) = sealed();
    for n in 0..3 {
        let mut fewer = seals.clone();
        fewer.remove(n);
        assert_ne!(verify(&entries, &fewer, KEPT, None).faults, [""; 0], "seal {n}");
        let mut forged = seals.clone();
        forged[n].mac = "0".repeat(64);
        assert_ne!(verify(&entries, &forged, KEPT, None).faults, [""; 0], "seal {n}");
    }
    let other = SealKey::new(&[8; 32]).unwrap();
    let mut verifier = Verifier::new(&other, seals.clone(), KEPT);
    entries.iter().for_each(|entry| verifier.read(entry));
    assert_eq!(verifier.finish(None).faults.len(), 4);
    assert!(SealKey::new(&[7; 31]).is_none());
}

#[test]
fn a_tail_that_was_cut_is_found_by_a_seal_that_was_kept_elsewhere() {
    let (entries, seals) = sealed();
    let (cut, fewer) = (&entries[..8], &seals[..3]);
    assert_eq!(verify(cut, fewer, KEPT, None).faults, [""; 0], "nobody could know");
    let told = verify(cut, fewer, KEPT, seals.last()).faults;
    assert!(told[0].contains("seal 4 was exported, and it ends at 3"), "{told:?}");
    assert_eq!(verify(&[], &[], KEPT, seals.last()).faults.len(), 1);
    let mut regrown = fewer.to_vec();
    regrown.push(Seal::over(&key(), fewer.last(), &[entry(20)]).unwrap());
    let told = verify(&[cut, &[entry(20)]].concat(), &regrown, KEPT, seals.last()).faults;
    assert_eq!(told, ["seal 4 is not the one that was exported"]);
}

#[test]
fn what_is_not_kept_any_more_is_not_missed() {
    let (entries, seals) = sealed();
    assert_eq!(verify(&entries[4..], &seals, 7, None).faults, [""; 0]);
    assert_eq!(verify(&entries[5..], &seals[1..], 3, seals.last()).faults, [""; 0]);
    assert_ne!(verify(&entries[5..], &seals, 7, None).faults, [""; 0], "one too few");
    let mut altered = entries[4..].to_vec();
    altered[5].fields[1].1.push('x');
    assert_ne!(verify(&altered, &seals, 7, None).faults, [""; 0]);
}
