"""A labelling interface of Label Studio, and what people draw in it, as its interface for models sends that."""

from tests.predicting import H, W

INTERFACE = """<View><Image name="img" value="$scene"/>
<BrushLabels name="brush" toName="img"><Label value="Dog"/></BrushLabels>
<KeyPointLabels name="click" toName="img" smart="true"><Label value="Dog" smart="true"/></KeyPointLabels>
<RectangleLabels name="box" toName="img" smart="true"><Label value="Dog" smart="true"/></RectangleLabels></View>"""


def click(x, y, positive=1):
    value = {"x": 100 * x / W, "y": 100 * y / H, "width": 0.5, "keypointlabels": ["Dog"]}
    where = {"from_name": "click", "to_name": "img", "original_width": W, "original_height": H}
    return where | {"id": "1", "type": "keypointlabels", "is_positive": positive, "value": value}


def rectangle(x0, y0, x1, y1):
    value = {"x": 100 * x0 / W, "y": 100 * y0 / H, "width": 100 * (x1 - x0) / W, "height": 100 * (y1 - y0) / H}
    where = {"from_name": "box", "to_name": "img", "original_width": W, "original_height": H}
    return where | {"id": "2", "type": "rectanglelabels", "value": value | {"rotation": 0, "rectanglelabels": ["Dog"]}}
