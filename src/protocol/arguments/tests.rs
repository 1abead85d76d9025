use serde_json::Value;

use super::*;

fn call(args: &[&str], kwargs: &[(&str, &str)]) -> Arguments {
    let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
    Arguments {
        args: args.iter().map(|text| raw(text)).collect(),
        kwargs: kwargs.iter().map(|(name, text)| ((*name).to_owned(), raw(text))).collect(),
    }
}

fn refusal<T: DeserializeOwned>(arguments: &Arguments) -> String {
    let Err(failure) = arguments.read::<T>("demo.add") else { panic!("the call was accepted") };
    assert_eq!((failure.exc_module.as_str(), failure.exc_type.as_str()), ("builtins", "TypeError"));
    failure.message()
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Add {
    x: i64,
    y: i64,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Loose {
    a: String,
    #[serde(default)]
    b: u8,
    c: Option<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Transparent(Arguments);

#[derive(Serialize, Deserialize)]
struct Wrapped(Arguments);

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Sum(Vec<i64>);

#[test]
fn a_struct_takes_arguments_by_position_and_by_name() {
    let expected = Add { x: 1, y: 2 };
    for arguments in
        [call(&["1", "2"], &[]), call(&["1"], &[("y", "2")]), call(&[], &[("y", "2"), ("x", "1")])]
    {
        assert_eq!(arguments.read::<Add>("add").unwrap(), expected);
    }
}

#[test]
fn a_call_with_wrong_arguments_fails_with_pythons_message() {
    for (arguments, expected) in [
        (call(&["1"], &[]), "add() missing 1 required positional argument: 'y'"),
        (call(&["1", "2", "3"], &[]), "add() takes 2 positional arguments but 3 were given"),
        (call(&["1", "2"], &[("z", "3")]), "add() got an unexpected keyword argument 'z'"),
        (call(&["1"], &[("x", "2")]), "add() got multiple values for argument 'x'"),
    ] {
        assert_eq!(refusal::<Add>(&arguments), expected);
    }
    let one = call(&["1"], &[]);
    assert_eq!(refusal::<()>(&one), "add() takes 0 positional arguments but 1 was given");
    let two = call(&["1", "2"], &[]);
    assert_eq!(refusal::<Sum>(&two), "add() takes 1 positional argument but 2 were given");
}

#[test]
fn a_value_of_the_wrong_type_is_refused_by_its_name() {
    let arguments = call(&["1", "\"two\""], &[]);
    let expected = "add() argument 'y': invalid type: string \"two\", expected i64";
    assert_eq!(refusal::<Add>(&arguments), expected);
}

#[test]
fn defaults_and_options_may_be_left_out() {
    let expected = Loose { a: "x".into(), b: 0, c: None };
    assert_eq!(call(&["\"x\""], &[]).read::<Loose>("f").unwrap(), expected);
    assert!(call(&["\"x\"", "1", "null"], &[]).read::<Loose>("f").unwrap().c.is_none());
}

#[test]
fn tuples_and_lists_take_positional_arguments_only() {
    let arguments = call(&["1", "\"b\""], &[]);
    assert_eq!(arguments.read::<(i64, String)>("f").unwrap(), (1, "b".into()));
    assert_eq!(call(&["1", "2"], &[]).read::<Vec<i64>>("f").unwrap(), [1, 2]);
    let named = call(&["1"], &[("y", "2")]);
    assert_eq!(refusal::<(i64, i64)>(&named), "add() got an unexpected keyword argument 'y'");
    let short = refusal::<(i64, i64)>(&call(&["1"], &[]));
    assert_eq!(short, "add() missing 1 required positional argument: number 2");
    assert!(refusal::<(i64,)>(&arguments).contains("takes 1 positional argument but 2"));
}

#[test]
fn a_newtype_takes_one_argument() {
    assert_eq!(call(&["[1, 2]"], &[]).read::<Sum>("f").unwrap(), Sum(vec![1, 2]));
    let collected = Arguments::of(&Sum(vec![1, 2])).unwrap();
    assert_eq!(collected.args.len(), 1);
    assert_eq!(collected.args[0].get(), "[1,2]");
}

#[test]
fn flattened_types_take_keywords_only() {
    #[derive(Deserialize)]
    struct Flat {
        x: i64,
        #[serde(flatten)]
        rest: std::collections::BTreeMap<String, Value>,
    }
    let flat: Flat = call(&[], &[("x", "1"), ("z", "[2]")]).read("f").unwrap();
    assert_eq!((flat.x, flat.rest.len()), (1, 1));
    let refused = refusal::<Flat>(&call(&["1"], &[]));
    assert_eq!(refused, "add() takes 0 positional arguments but 1 was given");
}

#[test]
fn arguments_themselves_pass_through_untouched() {
    let tag = r#"{"__type__": "date", "__value__": "2026-01-01"}"#;
    let arguments = call(&[tag, "1e400"], &[("k", "[ 1 ]")]);
    let same = |read: &Arguments| {
        assert_eq!(read.args[0].get(), tag);
        assert_eq!(read.args[1].get(), "1e400");
        assert_eq!(read.kwargs["k"].get(), "[ 1 ]");
    };
    same(&arguments.read::<Arguments>("f").unwrap());
    same(&arguments.read::<Transparent>("f").unwrap().0);
    same(&arguments.read::<Wrapped>("f").unwrap().0);
    same(&Arguments::of(&Transparent(arguments.clone())).unwrap());
    same(&Arguments::of(&Wrapped(arguments.clone())).unwrap());
    same(&Arguments::of(&arguments).unwrap());
    let json = serde_json::to_string(&arguments).unwrap();
    same(&serde_json::from_str(&json).unwrap());
}

#[test]
fn a_task_is_encoded_by_its_shape() {
    let named = Arguments::of(&Add { x: 1, y: 2 }).unwrap();
    assert_eq!(named.kwargs.keys().collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(named.read::<Add>("f").unwrap(), Add { x: 1, y: 2 });
    assert_eq!(Arguments::of(&(1, "b")).unwrap().args[1].get(), "\"b\"");
    assert_eq!(Arguments::of(&[1, 2]).unwrap().args.len(), 2);
    let none = Arguments::of(&()).unwrap();
    assert!(none.args.is_empty() && none.kwargs.is_empty());
    none.read::<()>("f").unwrap();
    assert!(Arguments::of(&5).is_err());
    assert!(Arguments::of(&std::collections::BTreeMap::from([(1, 2)])).is_err());
}

#[test]
fn an_integer_out_of_range_is_never_converted_to_a_float() {
    let big = "1180591620717411303424";
    assert!(refusal::<Add>(&call(&["1", big], &[])).starts_with("add() argument 'y'"));
    assert!(refusal::<Add>(&call(&["1", "1.0"], &[])).contains("floating point"));
    assert!(refusal::<(u8,)>(&call(&["256"], &[])).contains("256"));
    let (wide,) = call(&[big], &[]).read::<(u128,)>("f").unwrap();
    assert_eq!(wide.to_string(), big);
}

#[test]
fn a_value_that_no_rust_type_can_hold_is_refused() {
    assert!(refusal::<(String,)>(&call(&[r#""\ud800""#], &[])).contains("hex escape"));
    assert!(refusal::<(f64,)>(&call(&["1e400"], &[])).contains("out of range"));
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(refusal::<(Value,)>(&call(&[&deep], &[])).contains("recursion limit"));
}

#[test]
fn tagged_values_reach_typed_fields() {
    let bytes = r#"{"__type__": "bytes", "__value__": "ab"}"#;
    let read: Loose = call(&[bytes], &[("c", bytes)]).read("f").unwrap();
    assert_eq!(read, Loose { a: "ab".into(), b: 0, c: Some(b"ab".to_vec()) });
}
