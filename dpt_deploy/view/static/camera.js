// The camera: one frame at a time is on its way; when its maps have come, the newest frame follows.
// It may be stopped at any time, also while it is being opened.

const LONGEST = 640; // pixels

const REASONS = {
  NotAllowedError: "The browser may not open the camera. Allow it for this page, then try again.",
  NotFoundError: "No camera was found. Connect one, or choose an image.",
  NotReadableError: "The camera cannot be read; another program may be using it.",
  OverconstrainedError: "No camera was found that fits. Choose an image instead.",
};

export class Camera {
  // send(blob) resolves when the frame is shown; lost() is called when the camera ends by itself.
  constructor(send, lost) {
    this.send = send;
    this.lost = lost;
    this.video = document.createElement("video");
    this.video.muted = this.video.playsInline = true;
    this.stream = null;
    this.opening = null;
    this.paused = false;
  }

  get running() {
    return this.stream !== null || this.opening !== null;
  }

  // Resolves when the camera is open: true, or false if it was stopped meanwhile. Rejects with a sentence.
  async start() {
    if (!navigator.mediaDevices) {
      throw new Error("Browsers open the camera only on this machine itself (localhost), or over HTTPS.");
    }
    const wanted = {width: {ideal: LONGEST}, height: {ideal: 480}, facingMode: "user"};
    const mine = this.opening = {};
    let stream = null;
    try {
      stream = await navigator.mediaDevices.getUserMedia({video: wanted});
      if (this.opening === mine) {
        this.video.srcObject = stream;
        await this.video.play();
      }
    } catch (error) {
      close(stream);
      if (this.opening !== mine) return false;
      this.stop();
      throw new Error(REASONS[error.name] || `The camera cannot be opened: ${error.message}`);
    }
    if (this.opening !== mine) {
      close(stream);
      return false;
    }
    this.stream = stream;
    this.opening = null;
    stream.getVideoTracks()[0].addEventListener("ended", () => {
      if (this.stream !== stream) return;
      this.stop();
      this.lost();
    });
    return true;
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
      if (this.stream === mine && blob) await this.send(blob);
    }
  }

  stop() {
    close(this.stream);
    this.stream = this.opening = this.video.srcObject = null;
    this.paused = false;
  }
}

function close(stream) {
  if (stream) stream.getTracks().forEach((track) => track.stop());
}
