from rwkvfusion.stages.source.layouts import Layout, Place

# DIR/{train,test}/rgb/0001.png and DIR/{train,test}/thermal/0001_t.png
drive = Layout("vif", (Place("visible", ("rgb",)), Place("infrared", ("thermal",), suffixes=("_t",))))
