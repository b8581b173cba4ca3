// What tools draw on top of the image: the brush's ring, a polygon that is not applied yet.

import { type Place, type View, toScreen } from "../geometry";
import { strokeTwice } from "../stage";

/** As large as what the brush paints, at any zoom. */
export function drawRing(context: CanvasRenderingContext2D, view: View, at: Place, radius: number): void {
  const { x, y } = toScreen(view, at);
  context.beginPath();
  context.arc(x, y, radius * view.scale, 0, 2 * Math.PI);
  strokeTwice(context);
}

/** `active`: the vertex that is moved, or would be; -1 is none. */
export function drawPolygon(context: CanvasRenderingContext2D, view: View, vertices: readonly Place[], active: number): void {
  const places = vertices.map((vertex) => toScreen(view, vertex));
  context.beginPath();
  places.forEach(({ x, y }, index) => (index ? context.lineTo(x, y) : context.moveTo(x, y)));
  if (places.length > 2) context.closePath();
  context.fillStyle = "rgb(255 255 255 / 0.15)";
  context.fill();
  strokeTwice(context);
  places.forEach(({ x, y }, index) => {
    context.beginPath();
    context.arc(x, y, index === active ? 7 : 5, 0, 2 * Math.PI);
    context.fillStyle = index === 0 ? "#1a9e5c" : "#4353d8";
    context.fill();
    strokeTwice(context);
  });
}
