/** The picture, or the frames of a video, that the user gives. */

import { FieldError } from "./errors.js";

/** @typedef {import("./api.js").Config} Config */

/**
 * A picture, or one frame of a video, with its size before it was scaled down for the screen.
 * @typedef {{url: string, bitmap: ImageBitmap, thumbnail: string, width: number, height: number}} Frame
 *
 * `frames`: one for a picture. `description`: what is to be seen, where we know it.
 * @typedef {{name: string, description: string, frames: Frame[], video: boolean}} Picture
 */

const TYPES = ["image/jpeg", "image/png", "image/webp"];
/** Width of a picture with its tokens, and its greatest height; height of a thumbnail. In pixels. */
export const OVERLAY_WIDTH = 720;
const MAX_HEIGHT = 2160;
const THUMBNAIL_HEIGHT = 160;

/**
 * The picture in one file, or the video whose frames are in several, in the order of their names.
 * Throws FieldError.
 * @param {File[]} files
 * @param {Config} config
 * @param {string} [description]
 * @returns {Promise<Picture>}
 */
export async function readPicture(files, config, description = "") {
  const ordered = files.toSorted((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  check(ordered, config);
  const frames = await Promise.all(ordered.map(readFrame));
  if (frames.some(({ width, height }) => width !== frames[0].width || height !== frames[0].height)) {
    throw new FieldError("picture", "The frames of a video must all have one size. Choose one picture, or equal frames.");
  }
  const video = files.length > 1;
  return { name: video ? `${files.length} frames` : ordered[0].name, description, frames, video };
}

/**
 * @param {File[]} files
 * @param {Config} config
 */
function check(files, config) {
  for (const { name, type, size } of files) {
    if (!TYPES.includes(type)) {
      throw new FieldError("picture", `${name} is no JPEG, PNG or WebP file. Choose a file of one of these types.`);
    }
    if (size > config.max_image_bytes) {
      const [is, most] = [size, config.max_image_bytes].map(megabytes);
      throw new FieldError("picture", `${name} has ${is}, and the gateway takes ${most}. Choose a smaller file.`);
    }
  }
  if (files.length > config.max_frames) {
    throw new FieldError("picture", `These are ${files.length} frames, and the gateway takes ${config.max_frames}.`);
  }
  const all = files.reduce((sum, { size }) => sum + size, 0);
  if (all > config.max_images_bytes) {
    const [is, most] = [all, config.max_images_bytes].map(megabytes);
    throw new FieldError("picture", `The frames have ${is} together, and the gateway takes ${most}. Choose fewer.`);
  }
}

/** @param {number} bytes */
function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

/**
 * @param {File} file
 * @returns {Promise<Frame>}
 */
async function readFrame(file) {
  let whole;
  try {
    whole = await createImageBitmap(file); // upright, also if a camera lay on its side
  } catch {
    throw new FieldError("picture", `${file.name} cannot be read as a picture. Choose another file.`);
  }
  const { width, height } = whole;
  const resizeWidth = Math.max(1, Math.min(OVERLAY_WIDTH, Math.floor((MAX_HEIGHT * width) / height)));
  const bitmap = await createImageBitmap(whole, { resizeWidth, resizeQuality: "high" });
  whole.close();
  return { url: await dataUrl(file), bitmap, thumbnail: thumbnail(bitmap), width, height };
}

/** @param {ImageBitmap} bitmap */
function thumbnail(bitmap) {
  const canvas = document.createElement("canvas");
  canvas.height = THUMBNAIL_HEIGHT;
  canvas.width = Math.max(1, Math.min(4 * THUMBNAIL_HEIGHT, Math.round((bitmap.width * THUMBNAIL_HEIGHT) / bitmap.height)));
  const pen = canvas.getContext("2d");
  if (pen !== null) {
    pen.fillStyle = "white"; // behind transparent parts, as the encoder sees them; JPEG has none
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  }
  return canvas.toDataURL("image/jpeg", 0.85);
}

/**
 * @param {Blob} file
 * @returns {Promise<string>}
 */
function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
