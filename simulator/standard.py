"""What every account owns from its first day: standard units, countries and known currencies.

Names and codes are the real ones (OKEI, OKSM, ISO 4217; md/dictionaries/_uom.md, _country.md, _currency.md);
ids differ between accounts, because no document promises that they coincide.
"""

from __future__ import annotations

from .render import Json

UOMS: list[tuple[str, str, str]] = [  # name, code, description
    ("шт", "796", "Штука"),
    ("кг", "166", "Килограмм"),
    ("г", "163", "Грамм"),
    ("т", "168", "Тонна; метрическая тонна (1000 кг)"),
    ("л; дм3", "112", "Литр; кубический дециметр"),
    ("мм", "003", "Миллиметр"),
    ("см", "004", "Сантиметр"),
    ("м", "006", "Метр"),
    ("км; 10^3 м", "008", "Километр; тысяча метров"),
    ("дюйм", "039", "Дюйм (25,4 мм)"),
    ("м2", "055", "Квадратный метр"),
    ("м3", "113", "Кубический метр"),
    ("упак", "778", "Упаковка"),
    ("пар", "715", "Пара (2 шт.)"),
    ("ч", "356", "Час"),
    ("мес", "362", "Месяц"),
]

COUNTRIES: list[tuple[str, str, str]] = [  # name, code, description
    ("Россия", "643", "Российская Федерация"),
    ("Беларусь", "112", "Республика Беларусь"),
    ("Казахстан", "398", "Республика Казахстан"),
    ("Армения", "051", "Республика Армения"),
    ("Киргизия", "417", "Киргизская Республика"),
    ("Узбекистан", "860", "Республика Узбекистан"),
    ("Китай", "156", "Китайская Народная Республика"),
    ("Германия", "276", "Федеративная Республика Германия"),
    ("Италия", "380", "Итальянская Республика"),
    ("Франция", "250", "Французская Республика"),
    ("Турция", "792", "Турецкая Республика"),
    ("Вьетнам", "704", "Социалистическая Республика Вьетнам"),
    ("Индия", "356", "Республика Индия"),
    ("Япония", "392", "Япония"),
    ("Хорватия", "191", "Республика Хорватия"),
    ("Соединенные Штаты", "840", "Соединенные Штаты Америки"),
]


def _unit(gender: str, one: str, two: str, five: str) -> Json:
    return {"gender": gender, "s1": one, "s2": two, "s5": five}


def _currency(code: str, iso: str, name: str, full: str, major: Json, minor: Json) -> Json:
    return {
        "name": name,
        "fullName": full,
        "code": code,
        "isoCode": iso,
        "majorUnit": major,
        "minorUnit": minor,
    }


_CENT = _unit("masculine", "цент", "цента", "центов")

CURRENCIES: list[Json] = [
    _currency(
        "643",
        "RUB",
        "руб",
        "Российский рубль",
        _unit("masculine", "рубль", "рубля", "рублей"),
        _unit("feminine", "копейка", "копейки", "копеек"),
    ),
    _currency("840", "USD", "доллар", "Доллар США", _unit("masculine", "доллар", "доллара", "долларов"), _CENT),
    _currency("978", "EUR", "евро", "Евро", _unit("masculine", "евро", "евро", "евро"), _CENT),
    _currency(
        "156",
        "CNY",
        "юань",
        "Китайский юань",
        _unit("masculine", "юань", "юаня", "юаней"),
        _unit("masculine", "фынь", "фыня", "фыней"),
    ),
    _currency(
        "398",
        "KZT",
        "тенге",
        "Казахстанский тенге",
        _unit("masculine", "тенге", "тенге", "тенге"),
        _unit("masculine", "тиын", "тиына", "тиынов"),
    ),
    _currency(
        "933",
        "BYN",
        "бел. руб",
        "Белорусский рубль",
        _unit("masculine", "рубль", "рубля", "рублей"),
        _unit("feminine", "копейка", "копейки", "копеек"),
    ),
]

DEFAULT_PRICE_TYPE = "Цена продажи"
