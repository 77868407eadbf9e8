"""The simulated shop's vocabulary: its category tree, and the words that titles and profiles are made of."""

from __future__ import annotations

from evensong.types import CATEGORY_SEPARATOR

#: Department, aisle, shelf. A shelf's plural is its name and an "s".
TREE: dict[str, dict[str, tuple[str, ...]]] = {
    "Kitchen": {
        "Coffee": ("Grinder", "Kettle", "Brewer"),
        "Baking": ("Tin", "Whisk", "Scale"),
        "Cutting": ("Board", "Cleaver", "Sharpener"),
        "Serving": ("Bowl", "Platter", "Carafe"),
    },
    "Garden": {
        "Planting": ("Pot", "Trowel", "Propagator"),
        "Watering": ("Hose", "Sprinkler", "Can"),
        "Grilling": ("Grill", "Skewer", "Smoker"),
        "Lighting": ("Lantern", "Spotlight", "Candle"),
    },
    "Sports": {
        "Running": ("Vest", "Belt", "Sock"),
        "Climbing": ("Rope", "Helmet", "Carabiner"),
        "Yoga": ("Mat", "Brick", "Strap"),
        "Cycling": ("Pump", "Saddle", "Pannier"),
    },
    "Books": {
        "Crime": ("Novel", "Thriller", "Casebook"),
        "History": ("Memoir", "Chronicle", "Map"),
        "Cooking": ("Cookbook", "Primer", "Notebook"),
        "Picture": ("Storybook", "Sticker", "Poster"),
    },
    "Electronics": {
        "Audio": ("Headphone", "Speaker", "Turntable"),
        "Camera": ("Tripod", "Filter", "Flashgun"),
        "Computer": ("Keyboard", "Monitor", "Webcam"),
        "Power": ("Charger", "Cable", "Adapter"),
    },
    "Clothing": {
        "Rain": ("Jacket", "Boot", "Umbrella"),
        "Winter": ("Scarf", "Glove", "Beanie"),
        "Summer": ("Shirt", "Sandal", "Hat"),
        "Office": ("Blazer", "Tie", "Loafer"),
    },
    "Home": {
        "Bedroom": ("Pillow", "Blanket", "Sheet"),
        "Bath": ("Towel", "Robe", "Soap"),
        "Storage": ("Basket", "Crate", "Hook"),
        "Wall": ("Vase", "Mirror", "Frame"),
    },
    "Toys": {
        "Wooden": ("Train", "Block", "Puzzle"),
        "Outdoor": ("Kite", "Ball", "Swing"),
        "Craft": ("Crayon", "Loom", "Stamp"),
        "Puppet": ("Bear", "Dragon", "Theatre"),
    },
}

#: One row a shelf: department, aisle, shelf (singular).
SHELVES: list[tuple[str, str, str]] = [
    (department, aisle, shelf)
    for department, aisles in TREE.items()
    for aisle, shelves in aisles.items()
    for shelf in shelves
]
#: The category path of each shelf.
PATHS: list[str] = [CATEGORY_SEPARATOR.join((department, aisle, f"{shelf}s")) for department, aisle, shelf in SHELVES]
DEPARTMENTS: list[str] = list(TREE)

BRANDS = (
    "Alder", "Birke", "Corvo", "Dunmore", "Elvar", "Fjord", "Gresham", "Halden", "Isola", "Juniper", "Kestrel", "Lumen",
    "Marlow", "Norrland", "Ostara", "Pellow", "Quill", "Rowan", "Sorrel", "Tansy", "Umbra", "Vesper", "Wren", "Yarrow",
)  # fmt: skip
QUALITIES = (
    "Classic", "Compact", "Everyday", "Fine", "Heritage", "Light", "Little", "Modern", "Pocket", "Premium", "Quiet",
    "Simple", "Sturdy", "Swift", "Travel", "Weekend",
)  # fmt: skip
COLOURS = ("amber", "black", "blue", "coral", "forest", "grey", "ivory", "olive", "plum", "red", "sand", "white")
CITIES = ("Aarhus", "Bergen", "Cork", "Dresden", "Evora", "Faro", "Ghent", "Haarlem")
GENDERS = ("f", "m", "x")
LEVELS = ("basic", "silver", "gold")
