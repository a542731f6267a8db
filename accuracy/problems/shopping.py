"""Buying, selling and saving."""

from __future__ import annotations

from accuracy.problems.template import Draw, Work, template

GOODS = "pens|notebooks|mugs|candles|toy cars|puzzles|plants|scarves|lamps|books"
FRUIT = "apples|pears|lemons|oranges|plums|peaches|melons|mangos"


@template
def two_kinds(d: Draw, w: Work) -> str:
    who, a, b = d.person(), d.n(2, 12), d.n(2, 12)
    x, y = d.n(2, 20), d.n(2, 20)
    first, second = d.pick("pens|mugs|books|lamps|candles"), d.pick("hats|plants|puzzles|scarves|kites")
    one = w(f"The {first} cost $@.", f"{a} * {x}")
    two = w(f"The {second} cost $@.", f"{b} * {y}")
    w(f"Together {who} pays $@.", f"{one} + {two}")
    end = d.pick(
        f"How much does {who.he} pay?|How many dollars does {who} spend in all?|What is the total cost in dollars?"
    )
    return f"{who} buys {a} {first} at ${x} each and {b} {second} at ${y} each. {end}"


@template
def change(d: Draw, w: Work) -> str:
    who, count, price, paid = d.person(), d.n(2, 9), d.n(2, 15), d.one_of(50, 100, 150, 200)
    goods = d.pick(GOODS)
    cost = w(f"The {goods} cost $@.", f"{count} * {price}")
    w(f"{who} gets back $@.", f"{paid} - {cost}")
    end = d.pick(f"How much change does {who.he} get?|How many dollars does {who.he} get back?")
    return f"{who} buys {count} {goods} for ${price} each and pays with ${paid}. {end}"


@template
def discount_each(d: Draw, w: Work) -> str:
    who, count, price, off = d.person(), d.n(2, 12), d.n(6, 30), d.n(1, 5)
    goods = d.pick(GOODS)
    now = w("Each now costs $@.", f"{price} - {off}")
    w(f"So {who} pays $@.", f"{count} * {now}")
    return (
        f"{goods.capitalize()} usually cost ${price} each, but today each is ${off} cheaper."
        f" {who} buys {count} of them. How much does {who.he} pay in dollars?"
    )


@template
def saving_up(d: Draw, w: Work) -> str:
    who, have, week, weeks = d.person(), d.n(5, 60), d.n(3, 15), d.n(3, 12)
    wish = d.pick("bicycle|tent|guitar|camera|drum|telescope")
    more = d.n(4, 40)
    saved = w(f"In {weeks} weeks {who} saves $@.", f"{week} * {weeks}")
    total = w(f"{who.He} then has $@.", f"{have} + {saved}")
    price = total + more
    w(f"{who.He} still needs $@.", f"{price} - {total}")
    return (
        f"A {wish} costs ${price}. {who} has ${have} and saves ${week} every week."
        f" How many dollars will {who.he} still need after {weeks} weeks?"
    )


@template
def weeks_to_save(d: Draw, w: Work) -> str:
    who, have, week, weeks = d.person(), d.n(5, 60), d.n(3, 15), d.n(3, 15)
    price = have + week * weeks
    wish = d.pick("bicycle|tent|guitar|camera|drum|telescope")
    need = w(f"{who} needs $@ more.", f"{price} - {have}")
    w("That takes @ weeks.", f"{need} / {week}")
    return (
        f"{who} wants a {wish} for ${price}. {who.He} has ${have} already and puts ${week} aside each week."
        " After how many weeks can it be bought?"
    )


@template
def market_stall(d: Draw, w: Work) -> str:
    who, laid, kept, price = d.person(), d.n(20, 90), d.n(2, 15), d.n(2, 6)
    fruit = d.pick(FRUIT)
    sold = w(f"{who} sells @ {fruit}.", f"{laid} - {kept}")
    w(f"{who.He} makes $@.", f"{sold} * {price}")
    return (
        f"{who} picks {laid} {fruit} and keeps {kept} of them. {who.He} sells the others for ${price} each."
        f" How many dollars does {who.he} make?"
    )


@template
def profit(d: Draw, w: Work) -> str:
    who, count, buy, gain = d.person(), d.n(3, 20), d.n(2, 12), d.n(1, 9)
    sell, goods = buy + gain, d.pick(GOODS)
    paid = w(f"{who} pays $@ for the {goods}.", f"{count} * {buy}")
    taken = w(f"{who.He} takes in $@.", f"{count} * {sell}")
    w("The profit is $@.", f"{taken} - {paid}")
    return f"{who} buys {count} {goods} at ${buy} each and sells them all at ${sell} each. What is {who.his} profit in dollars?"


@template
def packs_needed(d: Draw, w: Work) -> str:
    who, packs, size, price = d.person(), d.n(3, 12), d.n(4, 12), d.n(2, 9)
    need, goods = packs * size, d.pick("cups|plates|balloons|napkins|stickers|eggs")
    count = w(f"{who} needs @ packs.", f"{need} / {size}")
    w("They cost $@.", f"{count} * {price}")
    return (
        f"{who} needs {need} {goods} for a party. They come in packs of {size}, and a pack costs ${price}."
        f" How much does {who.he} have to spend in dollars?"
    )


@template
def shared_bill(d: Draw, w: Work) -> str:
    friends, each, tip = d.n(2, 9), d.n(8, 40), d.n(4, 30)
    total = friends * each
    if tip >= total // 2:
        tip = max(2, total // 4)
    food = total - tip
    place = d.pick("a cafe|a restaurant|a diner|a pizza place")
    bill = w("With the tip they pay $@.", f"{food} + {tip}")
    w("Each pays $@.", f"{bill} / {friends}")
    return (
        f"{friends} friends eat at {place}. The food costs ${food} and they add a tip of ${tip}. They share it equally."
        " How many dollars does each pay?"
    )


@template
def money_left_in_steps(d: Draw, w: Work) -> str:
    who, had, a, b, got = d.person(), d.n(60, 200), d.n(5, 30), d.n(5, 30), d.n(5, 50)
    first = w(f"After the {(thing := d.pick('shirt|book|ticket|lunch'))} {who} has $@.", f"{had} - {a}")
    second = w(f"After the gift {who.he} has $@.", f"{first} - {b}")
    w(f"With the money from {who.his} aunt {who.he} has $@.", f"{second} + {got}")
    return (
        f"{who} has ${had}. {who.He} pays ${a} for a {thing} and ${b} for a gift. Then {who.his} aunt gives {who.him} ${got}."
        f" How many dollars does {who} have now?"
    )


@template
def tickets(d: Draw, w: Work) -> str:
    adults, children, child, more = d.n(2, 6), d.n(2, 9), d.n(3, 12), d.n(2, 9)
    place = d.pick("zoo|museum|circus|theatre|pool")
    price = w("A ticket for an adult costs $@.", f"{child} + {more}")
    one = w("The adults pay $@.", f"{adults} * {price}")
    two = w("The children pay $@.", f"{children} * {child}")
    w("Together that is $@.", f"{one} + {two}")
    return (
        f"At the {place} a child's ticket costs ${child}, and an adult's costs ${more} more."
        f" What do {adults} adults and {children} children pay in dollars?"
    )
