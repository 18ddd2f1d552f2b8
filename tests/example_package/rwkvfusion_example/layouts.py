from rwkvfusion.stages.source.layouts import Layout, Place

# DIR/{train,test}/rgb/0001.png and thermal/0001_t.png beside it, of some pairs a mask classes/0001.png
drive = Layout(
    "vif",
    (Place("visible", ("rgb",)), Place("infrared", ("thermal",), suffixes=("_t",)), Place("mask", ("classes",))),
    labels={1: "person", 2: "car"},
)
