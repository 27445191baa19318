// The camera: one frame at a time is on its way; when its maps have come, the newest frame follows.

const LONGEST = 640; // pixels

const REASONS = {
  NotAllowedError: "The browser may not open the camera. Allow it for this page, then try again.",
  NotFoundError: "No camera was found. Connect one, or choose an image.",
  NotReadableError: "The camera cannot be read; another program may be using it.",
  OverconstrainedError: "No camera was found that fits. Choose an image instead.",
};

export class Camera {
  // send(blob) resolves when the frame is shown.
  constructor(send) {
    this.send = send;
    this.video = document.createElement("video");
    this.video.muted = this.video.playsInline = true;
    this.stream = null;
    this.paused = false;
  }

  get running() {
    return this.stream !== null;
  }

  // Resolves when the camera is open. Rejects with a sentence.
  async start() {
    if (!navigator.mediaDevices) {
      throw new Error("Browsers open the camera only on this machine itself (localhost), or over HTTPS.");
    }
    const wanted = {width: {ideal: LONGEST}, height: {ideal: 480}, facingMode: "user"};
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({video: wanted});
    } catch (error) {
      throw new Error(REASONS[error.name] || `The camera cannot be opened: ${error.message}`);
    }
    this.stream.getVideoTracks()[0].addEventListener("ended", () => this.stop());
    this.video.srcObject = this.stream;
    await this.video.play();
  }

  // Runs until the camera is stopped, or a frame fails.
  async loop() {
    const canvas = document.createElement("canvas");
    const mine = this.stream;
    while (this.stream === mine && mine) {
      const {videoWidth, videoHeight} = this.video;
      if (!videoWidth || document.hidden || this.paused) {
        await new Promise((done) => setTimeout(done, 100));
        continue;
      }
      const scale = Math.min(1, LONGEST / Math.max(videoWidth, videoHeight));
      Object.assign(canvas, {width: Math.round(videoWidth * scale), height: Math.round(videoHeight * scale)});
      canvas.getContext("2d").drawImage(this.video, 0, 0, canvas.width, canvas.height);
      const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.88));
      if (this.stream === mine) await this.send(blob);
    }
  }

  stop() {
    if (this.stream) this.stream.getTracks().forEach((track) => track.stop());
    this.stream = this.video.srcObject = null;
    this.paused = false;
  }
}
