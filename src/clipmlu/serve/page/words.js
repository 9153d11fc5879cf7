// The words of the page in English and Chinese. An element with data-word shows that word, and changes with the language.

const many = (count, one, more) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;

const WORDS = {
  en: {
    skip: "Skip to the form",
    language: "Language",
    tasks: "Tasks",
    classifyTab: "Classify",
    searchTab: "Search",
    keyHeading: "API key",
    keyLabel: "Key of this server",
    keyHint: "It stays in this tab, until the tab is closed.",
    keyUse: "Use key",
    keyForget: "Forget key",
    images: "Images",
    drop: "Drop or paste images, or choose files",
    dropOne: "Drop or paste an image, or choose a file",
    remove: (name) => `Remove ${name}`,
    removeAll: "Remove all",
    pasted: (number) => `Pasted image ${number}`,
    added: (count, total) => `${many(count, "image", "images")} added, ${total} in all.`,
    removed: (name, total) => `${name} removed, ${total} left.`,
    notImages: (names) => `Not an image: ${names}. Choose JPEG, PNG, WebP or another format of images.`,
    labels: "Labels",
    labelsHint: "In any language, one a line; or in one line with commas between them.",
    labelsDefault: (count) => `Without labels here, those of the server are used: ${many(count, "label", "labels")}.`,
    labelsCount: (count) => many(count, "label", "labels"),
    bundle: "Model",
    templates: "Templates",
    templatesOwn: "own template",
    template: "Own template",
    templateHint: "{} stands for the label.",
    needTemplate: "Write {} where the label belongs, such as: a photo of a {}.",
    templatesServer: "default",
    top: "Show",
    topBest: (count) => (count === 1 ? "the best label" : `the best ${count}`),
    topAll: "all labels",
    classify: "Classify",
    stop: "Stop",
    tryAgain: "Try again",
    scores: "Scores",
    scoresEmpty: "Scores appear here.",
    needImages: "Choose an image first: drop it here, paste it, or choose a file.",
    needLabels: "Type at least one label, such as: a red circle",
    classifying: (done, total) => `Classifying: ${done} of ${total} done.`,
    classified: (count, seconds) => `${many(count, "image", "images")} classified in ${seconds}\u00a0s.`,
    classifiedOne: (name, label, score, seconds) => `${name}: ${label}, ${score}. Done in ${seconds}\u00a0s.`,
    failedToo: (text, count) => `${text} ${many(count, "image", "images")} failed.`,
    stopped: "Stopped.",
    waiting: "Waiting",
    busy: (seconds) => `The server is busy. Trying again in ${seconds}\u00a0s.`,
    again: (count) => `Try ${many(count, "image", "images")} again`,
    scoresOf: (name) => `Scores of ${name}`,
    rejected: "None of the labels fits.",
    time: (server, round) => `Server ${server}\u00a0ms, round trip ${round}\u00a0ms`,
    timeRound: (round) => `Round trip ${round}\u00a0ms`,
    query: "Text",
    queryHint: "What is to be seen, in words. With an image too, both count equally.",
    queryImage: "Image",
    hits: "Hits",
    path: "Paths",
    search: "Search",
    found: "Hits",
    foundEmpty: "Hits appear here.",
    needQuery: "Type a text, or give an image.",
    searching: "Searching.",
    foundCount: (count, seconds) => `${many(count, "hit", "hits")} in ${seconds}\u00a0s.`,
    foundNone: "No hits.",
    noPicture: "no picture",
    similarity: (value) => `similarity ${value}`,
    indexed: (rows) => `${many(rows, "image", "images")} in the index`,
    emulated: "emulated",
    emulatedBanner:
      "Emulated. The emulated vendor SDK computes these results on a CPU. They say nothing about the speed of a card.",
    gone: "The server does not answer. See whether it still runs, and then try again.",
    noSense: (status) => `The server gave an answer of status ${status} that this page does not understand.`,
    tooBusy: "The server was busy each time. Try again later.",
    unreadable: (name) => `The browser cannot read ${name}. It may be a folder, or it was moved or changed.`,
    request: (id) => `request ${id}`,
    privacy: "The labels are remembered in the address of this page only, in the part that is not sent to the server.",
  },
  zh: {
    skip: "跳到表单",
    language: "语言",
    tasks: "任务",
    classifyTab: "分类",
    searchTab: "检索",
    keyHeading: "API 密钥",
    keyLabel: "本服务的密钥",
    keyHint: "只保存在当前标签页中，关闭标签页即清除。",
    keyUse: "使用密钥",
    keyForget: "清除密钥",
    images: "图像",
    drop: "拖放或粘贴图像，或选择文件",
    dropOne: "拖放或粘贴一张图像，或选择文件",
    remove: (name) => `移除 ${name}`,
    removeAll: "全部移除",
    pasted: (number) => `粘贴的图像 ${number}`,
    added: (count, total) => `已添加 ${count} 张图像，共 ${total} 张。`,
    removed: (name, total) => `已移除 ${name}，剩余 ${total} 张。`,
    notImages: (names) => `不是图像：${names}。请选择 JPEG、PNG、WebP 等格式的图像。`,
    labels: "类别名称",
    labelsHint: "任何语言均可，每行一个；或在同一行内用逗号分隔。",
    labelsDefault: (count) => `此处留空时，使用服务端设定的 ${count} 个类别。`,
    labelsCount: (count) => `${count} 个类别`,
    bundle: "模型",
    templates: "提示词模板",
    templatesOwn: "自定义模板",
    template: "自定义模板",
    templateHint: "{} 代表类别名称。",
    needTemplate: "请用 {} 标出类别名称的位置，例如：一张{}的照片。",
    templatesServer: "默认",
    top: "显示",
    topBest: (count) => `前 ${count} 个`,
    topAll: "全部类别",
    classify: "分类",
    stop: "停止",
    tryAgain: "重试",
    scores: "得分",
    scoresEmpty: "得分将显示在这里。",
    needImages: "请先添加图像：拖放、粘贴或选择文件。",
    needLabels: "请至少输入一个类别名称，例如：红色的圆",
    classifying: (done, total) => `正在分类：已完成 ${done}/${total}。`,
    classified: (count, seconds) => `${count} 张图像分类完成，用时 ${seconds}\u00a0秒。`,
    classifiedOne: (name, label, score, seconds) => `${name}：${label}，${score}。用时 ${seconds}\u00a0秒。`,
    failedToo: (text, count) => `${text}${count} 张失败。`,
    stopped: "已停止。",
    waiting: "等待中",
    busy: (seconds) => `服务繁忙，${seconds}\u00a0秒后重试。`,
    again: (count) => `重试 ${count} 张图像`,
    scoresOf: (name) => `${name} 的得分`,
    rejected: "所有类别都不符合。",
    time: (server, round) => `服务端 ${server}\u00a0毫秒，往返 ${round}\u00a0毫秒`,
    timeRound: (round) => `往返 ${round}\u00a0毫秒`,
    query: "文本",
    queryHint: "用文字描述画面内容。如果同时给出图像，两者权重相同。",
    queryImage: "图像",
    hits: "结果数",
    path: "路径",
    search: "检索",
    found: "检索结果",
    foundEmpty: "检索结果将显示在这里。",
    needQuery: "请输入文本或提供一张图像。",
    searching: "正在检索。",
    foundCount: (count, seconds) => `${count} 个结果，用时 ${seconds}\u00a0秒。`,
    foundNone: "没有结果。",
    noPicture: "无图像",
    similarity: (value) => `相似度 ${value}`,
    indexed: (rows) => `索引中有 ${rows.toLocaleString("en")} 张图像`,
    emulated: "模拟（emulated）",
    emulatedBanner: "模拟（emulated）结果：由模拟（emulated）的厂商 SDK 在 CPU 上算出，完全不能说明加速卡的速度。",
    gone: "服务没有响应。请确认服务仍在运行，然后重试。",
    noSense: (status) => `服务返回的响应（状态码 ${status}）本页面无法识别。`,
    tooBusy: "服务一直繁忙，请稍后再试。",
    unreadable: (name) => `浏览器无法读取 ${name}：可能是文件夹，或文件已被移动或修改。`,
    request: (id) => `请求 ${id}`,
    privacy: "类别名称只记录在本页网址中，而且是不会发送给服务端的那一部分。",
  },
};

let language = "en";

export const LANGUAGES = Object.keys(WORDS);

// The language of the browser that the page knows, English otherwise.
export function preferredLanguage() {
  const known = navigator.languages.map((name) => name.toLowerCase().split("-")[0]);
  return known.find((name) => LANGUAGES.includes(name)) ?? "en";
}

export function say(word, ...values) {
  const found = WORDS[language][word];
  return typeof found === "function" ? found(...values) : found;
}

// Show a word in an element, now and after a change of the language.
export function speak(element, word, ...values) {
  element.dataset.word = word;
  element.dataset.values = JSON.stringify(values);
  element.textContent = say(word, ...values);
  return element;
}

// Show text that is no word of the page.
export function write(element, text) {
  delete element.dataset.word;
  element.textContent = text;
  return element;
}

export function setLanguage(chosen) {
  language = LANGUAGES.includes(chosen) ? chosen : preferredLanguage();
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === language));
  }
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = say(element.dataset.word, ...JSON.parse(element.dataset.values ?? "[]"));
  }
  for (const element of document.querySelectorAll("[data-word-label]")) {
    element.setAttribute("aria-label", say(element.dataset.wordLabel, ...JSON.parse(element.dataset.values ?? "[]")));
  }
  return language;
}
